package main

import (
	"os"
	"strconv"
	"testing"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// criuSays sends a response, with a descriptor if it is not negative.
func criuSays(t *testing.T, sk int, resp *rpc.CriuResp, fd int) {
	t.Helper()
	text, err := proto.Marshal(resp)
	if err != nil {
		t.Fatal(err)
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	if err := unix.Sendmsg(sk, text, oob, nil, 0); err != nil {
		t.Fatal(err)
	}
}

// criuHears receives a request.
func criuHears(t *testing.T, sk int) *rpc.CriuReq {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Read(sk, buf)
	if err != nil {
		t.Fatal(err)
	}
	var req rpc.CriuReq
	if err := proto.Unmarshal(buf[:n], &req); err != nil {
		t.Fatal(err)
	}
	return &req
}

func talkInTest(t *testing.T) (talk *criuTalk, images string) {
	t.Helper()
	options, err := proto.MarshalOptions{AllowPartial: true}.Marshal(&rpc.CriuOpts{Root: proto.String("/root"), RstSibling: proto.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	images = t.TempDir()
	talk, err = openTalk(options, images, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(talk.close)
	return talk, images
}

func TestRestoreSpeaksCriusProtocol(t *testing.T) {
	talk, images := talkInTest(t)
	go talk.listen()
	sk := int(talk.theirs.Fd())
	req := criuHears(t, sk)
	opts := req.GetOpts()
	if req.GetType() != rpc.CriuReqType_RESTORE || opts.GetRoot() != "/root" || !opts.GetRstSibling() {
		t.Errorf("the request is %v", req)
	}
	if dir, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(opts.GetImagesDirFd()))); err != nil || dir != images {
		t.Errorf("images are in %s, %v", dir, err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for script, fd := range map[string]int{"pre-restore": -1, "orphan-pts-master": int(null.Fd())} {
		criuSays(t, sk, &rpc.CriuResp{Type: rpc.CriuReqType_NOTIFY.Enum(), Success: proto.Bool(true), Notify: &rpc.CriuNotify{Script: &script}}, fd)
		if heard := criuHears(t, sk); heard.GetType() != rpc.CriuReqType_NOTIFY || !heard.GetNotifySuccess() {
			t.Errorf("%s is answered by %v", script, heard)
		}
	}
	criuSays(t, sk, &rpc.CriuResp{Type: rpc.CriuReqType_RESTORE.Enum(), Success: proto.Bool(true), Restore: &rpc.CriuRestoreResp{Pid: proto.Int32(77)}}, -1)
	pid, console, err := talk.restored()
	if pid != 77 || err != nil || console == nil {
		t.Fatalf("restored %d, %v, %v", pid, console, err)
	}
	defer console.Close()
	if st, err := console.Stat(); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("the terminal is %v, %v", st, err)
	}
}

func TestRestoreThatFailsIsAnError(t *testing.T) {
	talk, _ := talkInTest(t)
	go talk.listen()
	criuSays(t, int(talk.theirs.Fd()), &rpc.CriuResp{Type: rpc.CriuReqType_RESTORE.Enum(), Success: proto.Bool(false), Restore: &rpc.CriuRestoreResp{Pid: proto.Int32(-1)}}, -1)
	if _, _, err := talk.restored(); err == nil {
		t.Error("a refusal is none")
	}
	talk, _ = talkInTest(t)
	go talk.listen()
	if _, _, err := talk.restored(); err == nil { // criu has died, and what it started has the socket
		t.Error("silence is an answer")
	}
}

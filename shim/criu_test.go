package main

import (
	"os"
	"strconv"
	"testing"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// criuSays sends a response.
func criuSays(t *testing.T, sk int, resp *rpc.CriuResp) {
	t.Helper()
	text, err := proto.Marshal(resp)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(sk, text); err != nil {
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
	for _, script := range []string{"pre-restore", "post-restore"} {
		criuSays(t, sk, &rpc.CriuResp{Type: rpc.CriuReqType_NOTIFY.Enum(), Success: proto.Bool(true), Notify: &rpc.CriuNotify{Script: &script}})
		if heard := criuHears(t, sk); heard.GetType() != rpc.CriuReqType_NOTIFY || !heard.GetNotifySuccess() {
			t.Errorf("%s is answered by %v", script, heard)
		}
	}
	criuSays(t, sk, &rpc.CriuResp{Type: rpc.CriuReqType_RESTORE.Enum(), Success: proto.Bool(true), Restore: &rpc.CriuRestoreResp{Pid: proto.Int32(77)}})
	if pid, err := talk.restored(); pid != 77 || err != nil {
		t.Fatalf("restored %d, %v", pid, err)
	}
}

func TestRestoreThatFailsIsAnError(t *testing.T) {
	talk, _ := talkInTest(t)
	go talk.listen()
	criuSays(t, int(talk.theirs.Fd()), &rpc.CriuResp{Type: rpc.CriuReqType_RESTORE.Enum(), Success: proto.Bool(false), Restore: &rpc.CriuRestoreResp{Pid: proto.Int32(-1)}})
	if _, err := talk.restored(); err == nil {
		t.Error("a refusal is none")
	}
	talk, _ = talkInTest(t)
	go talk.listen()
	if _, err := talk.restored(); err == nil { // criu has died, and what it started has the socket
		t.Error("silence is an answer")
	}
}

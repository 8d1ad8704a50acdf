// Package wire holds that the shim's messages are containerd's, byte for byte,
// by comparing them with the types that containerd generates.
package wire

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/longshore/longshore/internal/pb"
	"github.com/longshore/longshore/shim/api"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func TestMessagesAreContainerds(t *testing.T) {
	at := time.Unix(1700000000, 123456789)
	any1 := &anypb.Any{TypeUrl: "types.example/x", Value: []byte{1, 2, 3}}
	ourAny := &api.Any{TypeURL: "types.example/x", Value: []byte{1, 2, 3}}
	for _, c := range []struct {
		theirs proto.Message
		ours   any
	}{
		{&task.CreateTaskRequest{ID: "i", Bundle: "b", Rootfs: []*types.Mount{{Type: "overlay", Source: "s", Target: "t", Options: []string{"a", "b"}}},
			Terminal: true, Stdin: "0", Stdout: "1", Stderr: "2", Checkpoint: "c", ParentCheckpoint: "p", Options: any1},
			&api.CreateTaskRequest{ID: "i", Bundle: "b", Rootfs: []*api.Mount{{Type: "overlay", Source: "s", Target: "t", Options: []string{"a", "b"}}},
				Terminal: true, Stdin: "0", Stdout: "1", Stderr: "2", Checkpoint: "c", ParentCheckpoint: "p", Options: ourAny}},
		{&task.CreateTaskResponse{Pid: 7}, &api.CreateTaskResponse{Pid: 7}},
		{&task.StartRequest{ID: "i", ExecID: "e"}, &api.ProcessRequest{ID: "i", ExecID: "e"}},
		{&task.StateRequest{ID: "i", ExecID: "e"}, &api.ProcessRequest{ID: "i", ExecID: "e"}},
		{&task.WaitRequest{ID: "i", ExecID: "e"}, &api.ProcessRequest{ID: "i", ExecID: "e"}},
		{&task.DeleteRequest{ID: "i", ExecID: "e"}, &api.ProcessRequest{ID: "i", ExecID: "e"}},
		{&task.PidsRequest{ID: "i"}, &api.TaskRequest{ID: "i"}},
		{&task.StartResponse{Pid: 8}, &api.StartResponse{Pid: 8}},
		{&task.DeleteResponse{Pid: 8, ExitStatus: 9, ExitedAt: timestamppb.New(at)}, &api.DeleteResponse{Pid: 8, ExitStatus: 9, ExitedAt: api.TimestampOf(at)}},
		{&task.ExecProcessRequest{ID: "i", ExecID: "e", Terminal: true, Stdin: "0", Stdout: "1", Stderr: "2", Spec: any1},
			&api.ExecProcessRequest{ID: "i", ExecID: "e", Terminal: true, Stdin: "0", Stdout: "1", Stderr: "2", Spec: ourAny}},
		{&task.ResizePtyRequest{ID: "i", ExecID: "e", Width: 80, Height: 24}, &api.ResizePtyRequest{ID: "i", ExecID: "e", Width: 80, Height: 24}},
		{&task.StateResponse{ID: "i", Bundle: "b", Pid: 1, Status: tasktypes.Status_STOPPED, Stdin: "0", Stdout: "1", Stderr: "2", Terminal: true, ExitStatus: 3, ExitedAt: timestamppb.New(at), ExecID: "e"},
			&api.StateResponse{ID: "i", Bundle: "b", Pid: 1, Status: int32(api.StatusStopped), Stdin: "0", Stdout: "1", Stderr: "2", Terminal: true, ExitStatus: 3, ExitedAt: api.TimestampOf(at), ExecID: "e"}},
		{&task.KillRequest{ID: "i", ExecID: "e", Signal: 9, All: true}, &api.KillRequest{ID: "i", ExecID: "e", Signal: 9, All: true}},
		{&task.CloseIORequest{ID: "i", ExecID: "e", Stdin: true}, &api.CloseIORequest{ID: "i", ExecID: "e", Stdin: true}},
		{&task.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: 1}, {Pid: 2}}}, &api.PidsResponse{Processes: []*api.ProcessInfo{{Pid: 1}, {Pid: 2}}}},
		{&task.UpdateTaskRequest{ID: "i", Resources: any1, Annotations: map[string]string{"a": "b"}}, &api.UpdateTaskRequest{ID: "i", Resources: ourAny, Annotations: map[string]string{"a": "b"}}},
		{&task.WaitResponse{ExitStatus: 137, ExitedAt: timestamppb.New(at)}, &api.WaitResponse{ExitStatus: 137, ExitedAt: api.TimestampOf(at)}},
		{&task.ConnectResponse{ShimPid: 1, TaskPid: 2, Version: "3"}, &api.ConnectResponse{ShimPid: 1, TaskPid: 2, Version: "3"}},
		{&task.ShutdownRequest{ID: "i", Now: true}, &api.ShutdownRequest{ID: "i", Now: true}},
		{&taskv2.KillRequest{ID: "i", ExecID: "e", Signal: 9, All: true}, &api.KillRequest{ID: "i", ExecID: "e", Signal: 9, All: true}},
	} {
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.theirs)
		if err != nil {
			t.Fatal(err)
		}
		if got := pb.Marshal(c.ours); !bytes.Equal(got, want) {
			t.Errorf("%T: % x, containerd's % x", c.ours, got, want)
		}
		// And back, into types that are empty.
		back := c.theirs.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(pb.Marshal(c.ours), back); err != nil || !proto.Equal(back, c.theirs) {
			t.Errorf("%T: containerd reads %v, %v", c.ours, back, err)
		}
	}
	if fmt.Sprint(tasktypes.Status_PAUSING) != "PAUSING" || int32(tasktypes.Status_PAUSING) != int32(api.StatusPausing) {
		t.Error("the states have other numbers")
	}
}

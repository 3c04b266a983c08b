package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/health/grpc_health_v1" // a service that may be called
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"headrace.dev/go/headrace"
	headracev1 "headrace.dev/go/headrace/v1"
)

// call makes any call, by the descriptors that came with the stubs.
func (d *driver) call(ctx context.Context, c *command) (any, error) {
	method, err := methodOf(c.Method)
	if err != nil {
		return nil, err
	}
	request, err := made(method.Input())
	if err != nil {
		return nil, err
	}
	if len(c.Request) > 0 {
		if err := protojson.Unmarshal(c.Request, request); err != nil {
			return nil, err
		}
	}
	var traceID string
	opts := append(c.timed(), headrace.TraceID(&traceID))
	messages := []json.RawMessage{}
	var failed error
	take := func(message proto.Message) error {
		text, err := protojson.Marshal(message)
		messages = append(messages, text)
		return err
	}
	if method.IsStreamingServer() {
		failed, err = d.stream(ctx, c, method, request, opts, take)
	} else {
		var answer proto.Message
		if answer, err = made(method.Output()); err != nil {
			return nil, err
		}
		if failed = d.client.Invoke(ctx, c.Method, request, answer, opts...); failed == nil {
			err = take(answer)
		}
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"messages": messages, "trace_id": traceID, "error": told(failed)}, nil
}

// stream gives what the call failed with, and what went wrong here.
func (d *driver) stream(
	ctx context.Context, c *command, method protoreflect.MethodDescriptor, request proto.Message,
	opts []grpc.CallOption, take func(proto.Message) error,
) (failed, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	desc := &grpc.StreamDesc{StreamName: string(method.Name()), ServerStreams: true}
	stream, failed := d.client.NewStream(ctx, desc, c.Method, opts...)
	if failed == nil {
		failed = stream.SendMsg(request)
	}
	if failed == nil {
		failed = stream.CloseSend()
	}
	for count := 0; failed == nil; {
		var message proto.Message
		if message, err = made(method.Output()); err != nil {
			return nil, err
		}
		if failed = stream.RecvMsg(message); failed != nil {
			break
		}
		if err = take(message); err != nil {
			return nil, err
		}
		if count++; count == c.CancelAfter {
			cancel()
		}
	}
	if failed == io.EOF {
		failed = nil
	}
	return failed, nil
}

func methodOf(path string) (protoreflect.MethodDescriptor, error) {
	name := strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", ".")
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name))
	if err != nil {
		return nil, err
	}
	method, ok := found.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is no method", path)
	}
	return method, nil
}

func made(message protoreflect.MessageDescriptor) (proto.Message, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(message.FullName())
	if err != nil {
		return nil, err
	}
	return kind.New().Interface(), nil
}

func (d *driver) complete(ctx context.Context, c *command) (any, error) {
	request := &headracev1.StreamCompletionRequest{}
	if err := protojson.Unmarshal(c.Request, request); err != nil {
		return nil, err
	}
	var traceID string
	whole, failed := d.client.Complete(ctx, request, append(c.timed(), headrace.TraceID(&traceID))...)
	if failed != nil {
		return map[string]any{"trace_id": traceID, "error": told(failed)}, nil
	}
	ids := whole.Choices[0].TokenIDs
	if ids == nil {
		ids = []uint32{}
	}
	return map[string]any{
		"text":          whole.Text(),
		"token_ids":     ids,
		"finish_reason": whole.Choices[0].FinishReason().String(),
		"input_tokens":  whole.Usage().GetPromptTokens(),
		"output_tokens": whole.Usage().GetOutputTokens(),
		"resumes":       whole.Completed.GetResumed(),
		"trace_id":      whole.TraceID,
		"error":         nil,
	}, nil
}

func (d *driver) draw(ctx context.Context, c *command) (any, error) {
	request := &headracev1.StreamImageRequest{}
	if err := protojson.Unmarshal(c.Request, request); err != nil {
		return nil, err
	}
	var traceID string
	drawn, failed := d.client.DrawImages(ctx, request, append(c.timed(), headrace.TraceID(&traceID))...)
	if failed != nil {
		return map[string]any{"trace_id": traceID, "error": told(failed)}, nil
	}
	images := []map[string]any{}
	for _, image := range drawn.Images {
		sum := sha256.Sum256(image.Data)
		images = append(images, map[string]any{
			"sha256":     hex.EncodeToString(sum[:]),
			"bytes":      len(image.Data),
			"media_type": image.Result.GetMediaType(),
		})
	}
	return map[string]any{"images": images, "trace_id": drawn.TraceID, "error": nil}, nil
}

// told gives an error as the SDK's user sees it; nil for none.
func told(err error) any {
	if err == nil {
		return nil
	}
	failed := headrace.FromError(err)
	metadata := failed.Metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	violations := []map[string]string{}
	for _, each := range failed.Violations {
		violations = append(violations, map[string]string{
			"field": each.Field, "description": each.Description,
		})
	}
	var retryAfter any
	if delay, ok := failed.RetryAfter(); ok {
		retryAfter = delay.Seconds()
	}
	return map[string]any{
		"code":        code.Code(failed.Code).String(),
		"reason":      string(failed.Reason),
		"message":     failed.Message,
		"metadata":    metadata,
		"retry_after": retryAfter,
		"violations":  violations,
	}
}

package headrace

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	headracev1 "headrace.dev/go/headrace/v1"
)

func detailed(t *testing.T, code codes.Code, message string, details ...protoadapt.MessageV1) error {
	t.Helper()
	made, err := status.New(code, message).WithDetails(details...)
	if err != nil {
		t.Fatal(err)
	}
	return made.Err()
}

func TestAnErrorHasWhatTheServerSaid(t *testing.T) {
	sent := detailed(t, codes.ResourceExhausted, "full",
		&errdetails.ErrorInfo{Reason: "OTHER", Domain: "elsewhere.example"},
		&errdetails.ErrorInfo{
			Reason: "QUEUE_FULL", Domain: "headrace.dev", Metadata: map[string]string{"limit": "64"},
		},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(250 * time.Millisecond)},
		&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: "stop.strings[2]", Description: "is empty"},
		}},
	)
	err := error(FromError(fmt.Errorf("again: %w", sent)))
	got := failed(t, err)
	if got.Code != codes.ResourceExhausted || got.Reason != ReasonQueueFull ||
		got.Message != "full" || got.Metadata["limit"] != "64" || len(got.Violations) != 1 ||
		got.Violations[0] != (FieldViolation{"stop.strings[2]", "is empty"}) {
		t.Errorf("%+v", got)
	}
	if delay, ok := got.RetryAfter(); !ok || delay != 250*time.Millisecond {
		t.Errorf("retry after %v, %v", delay, ok)
	}
	if !errors.Is(err, ReasonQueueFull) || errors.Is(err, ReasonDraining) ||
		errors.Is(err, Reason("")) || errors.Is(err, context.Canceled) {
		t.Error("errors.Is finds another reason than it has")
	}
	if ReasonOf(fmt.Errorf("once more: %w", err)) != ReasonQueueFull || ReasonOf(nil) != "" {
		t.Error("ReasonOf finds another reason than it has")
	}
	if status.Code(err) != codes.ResourceExhausted || len(status.Convert(err).Details()) != 4 {
		t.Error("package status does not find what it would without the SDK")
	}
	if text := err.Error(); text != "headrace: RESOURCE_EXHAUSTED (QUEUE_FULL): full" {
		t.Error(text)
	}
}

func TestErrorsWithoutAReason(t *testing.T) {
	for _, each := range []struct {
		given  error
		wanted codes.Code
	}{
		{status.Error(codes.Internal, "stream terminated by RST_STREAM with error code: NO_ERROR"), codes.Unavailable},
		{status.Error(codes.Internal, "unexpected"), codes.Internal},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errors.New("what is this"), codes.Unknown},
	} {
		got := FromError(each.given)
		if got.Code != each.wanted || got.Reason != "" || status.Code(got) != each.wanted {
			t.Errorf("%v is %v", each.given, got)
		}
		if errors.Is(got, context.Canceled) != (each.wanted == codes.Canceled) ||
			errors.Is(got, context.DeadlineExceeded) != (each.wanted == codes.DeadlineExceeded) {
			t.Errorf("%v is not what it is to package context", got)
		}
	}
	if FromError(nil) != nil {
		t.Error("nil is an error")
	}
	own := detailed(t, codes.Internal, "a bug; RST_STREAM was seen",
		&errdetails.ErrorInfo{Reason: "INTERNAL", Domain: "headrace.dev"})
	if got := FromError(own); got.Code != codes.Internal {
		t.Errorf("the server's own: %v", got)
	}
}

// The constants are read out of the source, so that none can be forgotten here.
func TestThereIsAConstantForEachReasonOfTheContract(t *testing.T) {
	parsed, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string]string{}
	ast.Inspect(parsed, func(node ast.Node) bool {
		if spec, ok := node.(*ast.ValueSpec); ok && len(spec.Values) == 1 {
			text, _ := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			constants[text] = spec.Names[0].Name
		}
		return true
	})
	for number, name := range headracev1.ErrorReason_name {
		short := strings.TrimPrefix(name, "ERROR_REASON_")
		camel := strings.ReplaceAll(strings.ToLower(constants[short]), "reason", "")
		if number != 0 && camel != strings.ReplaceAll(strings.ToLower(short), "_", "") {
			t.Errorf("%s is %q", name, constants[short])
		}
		delete(constants, short)
	}
	if len(constants) != 0 {
		t.Errorf("the contract has no %v", constants)
	}
}

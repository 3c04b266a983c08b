package headrace

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	headracev1 "headrace.dev/go/headrace/v1"
)

type response = headracev1.StreamCompletionResponse

func started() *response {
	return &response{Event: &headracev1.StreamCompletionResponse_Started{
		Started: &headracev1.CompletionStarted{Id: "1", Seed: 7},
	}}
}

func delta(made *headracev1.CompletionDelta) *response {
	return &response{Event: &headracev1.StreamCompletionResponse_Delta{Delta: made}}
}

func text(text string, ids ...uint32) *response {
	return delta(&headracev1.CompletionDelta{Text: text, TokenIds: ids})
}

// completed ends a stream of so many choices.
func completed(choices int) *response {
	results := make([]*headracev1.ChoiceResult, choices)
	for i := range results {
		results[i] = &headracev1.ChoiceResult{Index: int32(i)}
	}
	return completedWith(results...)
}

func completedWith(results ...*headracev1.ChoiceResult) *response {
	return &response{Event: &headracev1.StreamCompletionResponse_Completed{
		Completed: &headracev1.CompletionCompleted{
			Choices: results, Usage: &headracev1.Usage{OutputTokens: 3}, Resumed: 1,
		},
	}}
}

func progress() *response {
	return &response{Event: &headracev1.StreamCompletionResponse_Progress{}}
}

// telling gives a client of a server that sends these messages, then ends with the status.
func telling(t *testing.T, end error, messages ...*response) *Client {
	t.Helper()
	scripted := &server{complete: func(_ *headracev1.StreamCompletionRequest, stream grpc.ServerStreamingServer[response]) error {
		for _, message := range messages {
			if err := stream.Send(message); err != nil {
				return err
			}
		}
		return end
	}}
	return scripted.connected(t)
}

func TestACompletionIsPutTogether(t *testing.T) {
	length := &headracev1.ChoiceResult{FinishReason: headracev1.FinishReason_FINISH_REASON_LENGTH}
	unknown := &response{}
	unknown.ProtoReflect().SetUnknown([]byte{0xfa, 0x7d, 1, 'x'}) // an event of a later version
	client := telling(t, nil, progress(), started(), text("a", 1), unknown, text("", 2), text("ö", 3),
		completedWith(length))
	whole, err := client.Complete(ctx, &headracev1.StreamCompletionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	choice := whole.Choices[0]
	if whole.Text() != "aö" || !slices.Equal(choice.TokenIDs, []uint32{1, 2, 3}) ||
		choice.FinishReason() != headracev1.FinishReason_FINISH_REASON_LENGTH ||
		whole.Usage().GetOutputTokens() != 3 || whole.Started.GetSeed() != 7 ||
		whole.Completed.GetResumed() != 1 || len(whole.TraceID) != 32 || len(whole.Choices) != 1 {
		t.Errorf("%+v", whole)
	}
}

func TestSeveralChoicesAreKeptApart(t *testing.T) {
	stop := headracev1.FinishReason_FINISH_REASON_STOP
	client := telling(t, nil, started(),
		delta(&headracev1.CompletionDelta{Choice: 1, Text: "b", Reasoning: "hm"}), text("a"),
		delta(&headracev1.CompletionDelta{Choice: 1, Text: "c"}),
		completedWith(
			&headracev1.ChoiceResult{}, &headracev1.ChoiceResult{Index: 1, FinishReason: stop},
			&headracev1.ChoiceResult{Index: 2}, // It came to nothing at all.
		))
	request := &headracev1.StreamCompletionRequest{N: proto.Int32(3)}
	whole, err := client.Complete(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if len(whole.Choices) != 3 || whole.Text() != "a" || whole.Choices[1].Text != "bc" ||
		whole.Choices[1].Reasoning != "hm" || whole.Choices[1].FinishReason() != stop ||
		whole.Choices[2].Text != "" || whole.Choices[2].Result.GetIndex() != 2 {
		t.Errorf("%+v", whole)
	}
	stream, err := client.StreamCompletion(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for _, err := range stream.Text() {
		if !errors.Is(err, ReasonInvalidRequest) {
			t.Errorf("the text of three choices: %v", err)
		}
	}
}

func TestToolCallsAreJoined(t *testing.T) {
	part := func(index int32, name *string, arguments string) *headracev1.ToolCallPart {
		return &headracev1.ToolCallPart{Index: index, Name: name, Id: name, ArgumentsJson: arguments}
	}
	first, second := proto.String("first"), proto.String("second")
	calls := func(parts ...*headracev1.ToolCallPart) *response {
		return delta(&headracev1.CompletionDelta{ToolCalls: parts})
	}
	client := telling(t, nil, started(), calls(part(0, first, `{"a"`)), calls(part(0, nil, `: 1}`)),
		calls(part(1, second, "{"), part(1, nil, "}")), completed(1))
	whole, err := client.Complete(ctx, &headracev1.StreamCompletionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := whole.Choices[0].ToolCalls
	if len(got) != 2 || got[0].GetName() != "first" || got[0].GetArgumentsJson() != `{"a": 1}` ||
		got[1].GetId() != "second" || got[1].GetArgumentsJson() != "{}" {
		t.Errorf("%v", got)
	}
	for _, parts := range [][]*headracev1.ToolCallPart{
		{part(0, nil, "{")}, {part(1, first, "{")}, {part(-1, first, "{")},
		{part(0, first, "{"), part(0, second, "}")},
	} {
		client := telling(t, nil, started(), calls(parts...), completed(1))
		_, err := client.Complete(ctx, &headracev1.StreamCompletionRequest{})
		if failed(t, err).Code != codes.Internal {
			t.Errorf("%v: %v", parts, err)
		}
	}
}

func TestAStreamIsHeldToItsWord(t *testing.T) {
	for name, each := range map[string]struct {
		messages []*response
		end      error
		wanted   codes.Code
	}{
		"no end":           {[]*response{started(), text("a", 1)}, nil, codes.Internal},
		"nothing":          {nil, nil, codes.Internal},
		"on after its end": {[]*response{started(), completed(1), text("a")}, nil, codes.Internal},
		"two starts":       {[]*response{started(), started()}, nil, codes.Internal},
		"output too early": {[]*response{text("a")}, nil, codes.Internal},
		"an end too early": {[]*response{completed(1)}, nil, codes.Internal},
		"another choice": {
			[]*response{started(), delta(&headracev1.CompletionDelta{Choice: 1})}, nil, codes.Internal,
		},
		"no choice":   {[]*response{started(), text("a"), completed(0)}, nil, codes.Internal},
		"two choices": {[]*response{started(), text("a"), completed(2)}, nil, codes.Internal},
		"only another choice": {
			[]*response{started(), completedWith(&headracev1.ChoiceResult{Index: 1})}, nil, codes.Internal,
		},
		"an error after its end": {
			[]*response{started(), completed(1)}, status.Error(codes.Aborted, "x"), codes.Aborted,
		},
		"an error": {
			[]*response{started(), text("a", 1)}, status.Error(codes.Aborted, "x"), codes.Aborted,
		},
	} {
		client := telling(t, each.end, each.messages...)
		whole, err := client.Complete(ctx, &headracev1.StreamCompletionRequest{})
		got := failed(t, err)
		if whole != nil || got.Code != each.wanted || len(got.TraceID) != 32 || got.Reason != "" {
			t.Errorf("%s: %v, %v", name, whole, err)
		}
	}
}

func TestAStreamOfTwoEndsWithBoth(t *testing.T) {
	first, second := &headracev1.ChoiceResult{}, &headracev1.ChoiceResult{Index: 1}
	for name, results := range map[string][]*headracev1.ChoiceResult{
		"none": nil, "the first": {first}, "the first twice": {first, first},
		"the second first": {second, first}, "a third": {first, second, {Index: 2}},
	} {
		client := telling(t, nil, started(), text("a"), completedWith(results...))
		whole, err := client.Complete(ctx, &headracev1.StreamCompletionRequest{N: proto.Int32(2)})
		if got := failed(t, err); whole != nil || got.Code != codes.Internal || got.Reason != "" {
			t.Errorf("%s: %v, %v", name, whole, err)
		}
	}
}

func TestAStreamCanBeReadInParts(t *testing.T) {
	client := telling(t, nil, progress(), started(), text("a", 1), text("", 2), text("b", 3), completed(1))
	stream, err := client.StreamCompletion(ctx, &headracev1.StreamCompletionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if first, err := stream.Recv(); err != nil || first.GetProgress() == nil {
		t.Errorf("%v, %v", first, err)
	}
	for piece, err := range stream.Text() {
		if piece != "a" || err != nil {
			t.Errorf("%q, %v", piece, err)
		}
		break
	}
	count := 0
	for event, err := range stream.Events() {
		if count++; err != nil || event == nil {
			t.Error(err)
		}
	}
	if _, err := stream.Recv(); count != 3 || err != io.EOF {
		t.Errorf("%d events were left; then %v", count, err)
	}
	for range 2 {
		if whole, err := stream.Collect(); err != nil || whole.Text() != "ab" || whole.TraceID != stream.TraceID() {
			t.Errorf("%+v, %v", whole, err)
		}
	}
}

func TestAFailureIsTheLastThingThatALoopSees(t *testing.T) {
	client := telling(t, status.Error(codes.Aborted, "x"), started(), text("a"))
	stream, err := client.StreamCompletion(ctx, &headracev1.StreamCompletionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for piece, err := range stream.Text() {
		if seen = append(seen, piece); err != nil {
			seen = append(seen, failed(t, err).Message)
		}
	}
	if got := strings.Join(seen, ","); got != "a,,x" {
		t.Error(got)
	}
}

func TestAClosedStreamIsCancelled(t *testing.T) {
	client := telling(t, nil, started(), completed(1))
	stream, err := client.StreamCompletion(ctx, &headracev1.StreamCompletionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	stream.Close()
	if _, err := stream.Collect(); failed(t, err).Code != codes.Canceled {
		t.Error(err)
	}
}

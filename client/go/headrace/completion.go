package headrace

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"google.golang.org/grpc"

	headracev1 "headrace.dev/go/headrace/v1"
)

// Completion is a whole completion.
type Completion struct {
	// Choices are the outputs, by index: as many as the request's n.
	Choices []Choice
	// Started says what served the request, and with which seed.
	Started *headracev1.CompletionStarted
	// Completed has the usage, the timings, and how often the stream moved to another runner.
	Completed *headracev1.CompletionCompleted
	// TraceID is that of the call, 32 hexadecimal digits.
	TraceID string
}

// Text gives the text of the first choice.
func (c *Completion) Text() string { return c.Choices[0].Text }

// Usage gives the tokens of the request.
func (c *Completion) Usage() *headracev1.Usage { return c.Completed.GetUsage() }

// Choice is one output.
type Choice struct {
	// Text is the output without reasoning and tool calls.
	Text string
	// Reasoning is that of a chat, for models whose form is known.
	Reasoning string
	// ToolCalls are the calls that the model asks for. One that the output's end has cut has
	// arguments that are no JSON object.
	ToolCalls []*headracev1.ToolCall
	// TokenIDs are the tokens behind all of it.
	TokenIDs []uint32
	// Logprobs has one entry for each token, where they were asked for.
	Logprobs []*headracev1.TokenLogprob
	// Result says how the choice ended.
	Result *headracev1.ChoiceResult
}

// FinishReason says why the choice ended.
func (c *Choice) FinishReason() headracev1.FinishReason { return c.Result.GetFinishReason() }

// CompletionStream is a completion that is being generated.
type CompletionStream struct {
	*Stream[headracev1.StreamCompletionResponse, Completion]

	choices int32
}

// Complete generates, and gives the whole at its end.
func (c *Client) Complete(
	ctx context.Context, request *headracev1.StreamCompletionRequest, opts ...grpc.CallOption,
) (*Completion, error) {
	stream, err := c.StreamCompletion(ctx, request, opts...)
	if err != nil {
		return nil, err
	}
	return stream.Collect()
}

// StreamCompletion generates token by token.
func (c *Client) StreamCompletion(
	ctx context.Context, request *headracev1.StreamCompletionRequest, opts ...grpc.CallOption,
) (*CompletionStream, error) {
	choices := max(1, request.GetN()) // The server refuses what is below.
	stub := headracev1.NewCompletionServiceClient(c)
	fold := &completionFold{parts: map[int32]*choiceParts{}, choices: choices}
	stream, err := begun(ctx, fold, opts,
		func(ctx context.Context, opts ...grpc.CallOption) (
			grpc.ServerStreamingClient[headracev1.StreamCompletionResponse], error,
		) {
			return stub.StreamCompletion(ctx, request, opts...)
		})
	if err != nil {
		return nil, err
	}
	return &CompletionStream{Stream: stream, choices: choices}, nil
}

// Text gives the pieces of the text as they come, as Events gives messages. It is for requests of
// one choice: the pieces of several would come mixed.
func (s *CompletionStream) Text() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if s.choices != 1 {
			yield("", invalid("the texts of %d choices come mixed; use Events", s.choices))
			return
		}
		for message, err := range s.Events() {
			text := message.GetDelta().GetText()
			if (text != "" || err != nil) && !yield(text, err) {
				return
			}
		}
	}
}

type completionFold struct {
	order[headracev1.CompletionStarted, headracev1.CompletionCompleted]

	choices int32
	parts   map[int32]*choiceParts
}

type choiceParts struct {
	text, reasoning strings.Builder
	tokenIDs        []uint32
	logprobs        []*headracev1.TokenLogprob
	calls           []*headracev1.ToolCall
	arguments       []*strings.Builder // of each call
}

func (f *completionFold) add(message *headracev1.StreamCompletionResponse) error {
	output := message.GetDelta() != nil || message.GetCompleted() != nil
	if err := f.next(message.GetStarted(), output); err != nil {
		return err
	}
	switch event := message.GetEvent().(type) {
	case *headracev1.StreamCompletionResponse_Delta:
		index := event.Delta.GetChoice()
		if index < 0 || index >= f.choices {
			return broken("the stream sent output of a choice that was not asked for")
		}
		if f.parts[index] == nil {
			f.parts[index] = &choiceParts{}
		}
		return f.parts[index].add(event.Delta)
	case *headracev1.StreamCompletionResponse_Completed:
		return f.complete(event.Completed)
	}
	return nil
}

func (f *completionFold) complete(completed *headracev1.CompletionCompleted) error {
	results := completed.GetChoices()
	whole := len(results) == int(f.choices)
	for i, result := range results {
		whole = whole && int(result.GetIndex()) == i
	}
	if !whole {
		return broken(fmt.Sprintf(
			"the stream was completed with other choices than the %d asked for", f.choices))
	}
	f.completed = completed
	return nil
}

func (f *completionFold) result(traceID string) (*Completion, error) {
	if f.completed == nil {
		return nil, incomplete()
	}
	whole := &Completion{Started: f.started, Completed: f.completed, TraceID: traceID}
	whole.Choices = make([]Choice, f.choices)
	for index, parts := range f.parts {
		whole.Choices[index] = parts.choice()
	}
	for i, result := range f.completed.GetChoices() {
		whole.Choices[i].Result = result
	}
	return whole, nil
}

func (p *choiceParts) add(delta *headracev1.CompletionDelta) error {
	p.text.WriteString(delta.GetText())
	p.reasoning.WriteString(delta.GetReasoning())
	p.tokenIDs = append(p.tokenIDs, delta.GetTokenIds()...)
	p.logprobs = append(p.logprobs, delta.GetLogprobs()...)
	for _, part := range delta.GetToolCalls() {
		index := int(part.GetIndex())
		switch {
		case index == len(p.calls) && part.Name != nil:
			call := &headracev1.ToolCall{Id: part.GetId(), Name: part.GetName()}
			p.calls = append(p.calls, call)
			p.arguments = append(p.arguments, &strings.Builder{})
		case index < 0 || index >= len(p.calls) || part.Name != nil:
			return broken("a part of a tool call does not follow the one before")
		}
		p.arguments[index].WriteString(part.GetArgumentsJson())
	}
	return nil
}

func (p *choiceParts) choice() Choice {
	for i, call := range p.calls {
		call.ArgumentsJson = p.arguments[i].String()
	}
	return Choice{
		Text:      p.text.String(),
		Reasoning: p.reasoning.String(),
		ToolCalls: p.calls,
		TokenIDs:  p.tokenIDs,
		Logprobs:  p.logprobs,
	}
}

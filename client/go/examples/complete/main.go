// Command complete has a model go on with a text, and shows it while it comes.
//
//	go run ./examples/complete -model smollm2:135m "Once upon a time"
//
// The controller is that of HEADRACE_HOST, else the one on this machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"google.golang.org/protobuf/proto"

	"headrace.dev/go/headrace"
	headracev1 "headrace.dev/go/headrace/v1"
)

func main() {
	model := flag.String("model", "smollm2:135m", "name of the model")
	tokens := flag.Int("max-tokens", 32, "tokens to generate at most")
	flag.Parse()
	prompt := strings.Join(flag.Args(), " ")
	if prompt == "" {
		prompt = "Once upon a time"
	}
	// Ctrl-C ends the generation on the server too.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := complete(ctx, *model, prompt, int32(*tokens)); err != nil {
		fmt.Fprintf(os.Stderr, "\n%v\n", err)
		if errors.Is(err, headrace.ReasonModelNotFound) {
			fmt.Fprintf(os.Stderr, "get it by: headrace pull %s\n", *model)
		}
		os.Exit(1)
	}
}

func complete(ctx context.Context, model, prompt string, tokens int32) error {
	client, err := headrace.New("")
	if err != nil {
		return err
	}
	defer client.Close()
	stream, err := client.StreamCompletion(ctx, &headracev1.StreamCompletionRequest{
		Model:     model,
		Input:     &headracev1.StreamCompletionRequest_Prompt{Prompt: prompt},
		Sampling:  &headracev1.SamplingOptions{Temperature: proto.Float32(0)},
		MaxTokens: &tokens,
	})
	if err != nil {
		return err
	}
	defer stream.Close()
	for text, err := range stream.Text() {
		if err != nil {
			return err
		}
		fmt.Print(text)
	}
	whole, err := stream.Collect()
	if err != nil {
		return err
	}
	fmt.Printf("\n(%s, %d tokens)\n", whole.Choices[0].FinishReason(), whole.Usage().GetOutputTokens())
	return nil
}

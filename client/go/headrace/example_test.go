package headrace_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"headrace.dev/go/headrace"
	headracev1 "headrace.dev/go/headrace/v1"
)

func ExampleNew_tls() {
	client, err := headrace.New("https://gpu.example:50151",
		headrace.WithCA("tls/ca.crt"),
		headrace.WithClientCertificate("tls/client.crt", "tls/client.key"),
		headrace.WithToken(os.Getenv("MY_TOKEN")),
		headrace.WithTimeout(2*time.Minute),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
}

func ExampleClient_Complete() {
	ctx := context.Background()
	client, err := headrace.New("")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	whole, err := client.Complete(ctx, &headracev1.StreamCompletionRequest{
		Model: "smollm2:135m",
		Input: &headracev1.StreamCompletionRequest_Chat{Chat: &headracev1.ChatInput{
			Messages: []*headracev1.ChatMessage{
				{Role: headracev1.ChatRole_CHAT_ROLE_SYSTEM, Content: "Answer in one word."},
				{Role: headracev1.ChatRole_CHAT_ROLE_USER, Content: "Name a colour."},
			},
		}},
		Sampling:  &headracev1.SamplingOptions{Temperature: proto.Float32(0)},
		MaxTokens: proto.Int32(8),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(whole.Text(), whole.Choices[0].FinishReason(), whole.Usage().GetOutputTokens())
}

func ExampleClient_StreamCompletion() {
	ctx := context.Background()
	client, err := headrace.New("")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	stream, err := client.StreamCompletion(ctx, &headracev1.StreamCompletionRequest{
		Model:     "smollm2:135m",
		Input:     &headracev1.StreamCompletionRequest_Prompt{Prompt: "Once upon a time"},
		MaxTokens: proto.Int32(16),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer stream.Close()
	for text, err := range stream.Text() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(text)
	}
	whole, err := stream.Collect() // what has been read, put together
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("\nseed %d, trace %s\n", whole.Started.GetSeed(), whole.TraceID)
}

func ExampleCompletionStream_Events() {
	ctx := context.Background()
	client, err := headrace.New("")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	stream, err := client.StreamCompletion(ctx, &headracev1.StreamCompletionRequest{
		Model:     "smollm2:135m",
		Input:     &headracev1.StreamCompletionRequest_Prompt{Prompt: "Once upon a time"},
		MaxTokens: proto.Int32(4),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer stream.Close()
	for message, err := range stream.Events() {
		if err != nil {
			log.Fatal(err)
		}
		switch event := message.GetEvent().(type) {
		case *headracev1.StreamCompletionResponse_Progress:
			fmt.Printf("loading %.0f%%\n", 100*event.Progress.GetLoadFraction())
		case *headracev1.StreamCompletionResponse_Started:
			fmt.Println(event.Started.GetPromptTokens(), "tokens in the prompt")
		case *headracev1.StreamCompletionResponse_Delta:
			fmt.Println(event.Delta.GetText(), event.Delta.GetTokenIds())
		case *headracev1.StreamCompletionResponse_Completed:
			fmt.Println(event.Completed.GetTimings().GetTotal().AsDuration())
		}
	}
}

func ExampleClient_DrawImages() {
	ctx := context.Background()
	client, err := headrace.New("")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	drawn, err := client.DrawImages(ctx, &headracev1.StreamImageRequest{
		Model: "emoji:64", Prompt: "a red rose", Seed: proto.Int64(7),
	})
	if err != nil {
		log.Fatal(err)
	}
	for i, image := range drawn.Images {
		if err := os.WriteFile(fmt.Sprintf("rose-%d.png", i), image.Data, 0o644); err != nil {
			log.Fatal(err)
		}
		fmt.Println(image.Result.GetMediaType(), image.Result.GetWidth(), image.Result.GetHeight())
	}
}

func ExampleError() {
	ctx := context.Background()
	client, err := headrace.New("")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	_, err = client.Complete(ctx, &headracev1.StreamCompletionRequest{
		Model: "smolm2",
		Input: &headracev1.StreamCompletionRequest_Prompt{Prompt: "x"},
	})
	var failed *headrace.Error
	switch {
	case errors.Is(err, headrace.ReasonModelNotFound) && errors.As(err, &failed):
		fmt.Println("is it one of these:", failed.Metadata["nearest"])
	case errors.Is(err, headrace.ReasonQueueFull) && errors.As(err, &failed):
		if delay, ok := failed.RetryAfter(); ok {
			fmt.Println("again in", delay)
		}
	case errors.As(err, &failed):
		fmt.Println(failed.Code, failed.Reason, failed.Message, failed.Violations, failed.TraceID)
	}
}

func ExampleClient_stubs() {
	ctx := context.Background()
	client, err := headrace.New("")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	var traceID string
	models := headracev1.NewModelServiceClient(client)
	list, err := models.ListModels(ctx, &headracev1.ListModelsRequest{},
		headrace.TraceID(&traceID), headrace.CallTimeout(10*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	for _, model := range list.GetModels() {
		fmt.Println(model.GetName(), model.GetSizeBytes())
	}
	fmt.Println("trace", traceID)
}

// Runs the examples where HEADRACE_HOST names a controller with smollm2:135m and emoji:64. They
// end the process where they fail.
func TestTheExamplesAtAController(t *testing.T) {
	if os.Getenv("HEADRACE_HOST") == "" {
		t.Skip("HEADRACE_HOST names no controller")
	}
	t.Chdir(t.TempDir())
	ExampleClient_Complete()
	ExampleClient_StreamCompletion()
	ExampleCompletionStream_Events()
	ExampleClient_DrawImages()
	ExampleError()
	ExampleClient_stubs()
	if _, err := os.Stat("rose-0.png"); err != nil {
		t.Error(err)
	}
}

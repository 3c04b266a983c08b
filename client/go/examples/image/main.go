// Command image has a model draw, and writes the file.
//
//	go run ./examples/image -model emoji:64 -output rose.png "a red rose"
//
// The controller is that of HEADRACE_HOST, else the one on this machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"headrace.dev/go/headrace"
	headracev1 "headrace.dev/go/headrace/v1"
)

func main() {
	model := flag.String("model", "emoji:64", "name of the model")
	output := flag.String("output", "image.png", "file to write")
	flag.Parse()
	prompt := strings.Join(flag.Args(), " ")
	if prompt == "" {
		prompt = "a red rose"
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := draw(ctx, *model, prompt, *output); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func draw(ctx context.Context, model, prompt, output string) error {
	client, err := headrace.New("")
	if err != nil {
		return err
	}
	defer client.Close()
	drawn, err := client.DrawImages(ctx, &headracev1.StreamImageRequest{Model: model, Prompt: prompt})
	if err != nil {
		return err
	}
	image := drawn.Images[0]
	if err := os.WriteFile(output, image.Data, 0o644); err != nil {
		return err
	}
	fmt.Printf("%s: %s, %d×%d, seed %d\n", output, image.Result.GetMediaType(),
		image.Result.GetWidth(), image.Result.GetHeight(), image.Result.GetSeed())
	return nil
}

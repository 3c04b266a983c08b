// Command conformance is the driver of the Go SDK; tests/conformance/README.md says what a driver
// does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"headrace.dev/go/headrace"
)

// command is one line of the input.
type command struct {
	Do          string            `json:"do"`
	Target      string            `json:"target"`
	Token       string            `json:"token"`
	CA          string            `json:"ca"`
	Cert        string            `json:"cert"`
	Key         string            `json:"key"`
	Timeout     *float64          `json:"timeout"`
	Method      string            `json:"method"`
	Request     json.RawMessage   `json:"request"`
	CancelAfter int               `json:"cancel_after"`
	Traceparent string            `json:"traceparent"`
	Headers     map[string]string `json:"headers"`
}

// driver has one client at a time.
type driver struct {
	client *headrace.Client
}

func main() {
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "HEADRACE_") {
			_ = os.Unsetenv(name)
		}
	}
	if err := run(os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// run carries out the commands until the end of the input.
func run(input io.Reader, output io.Writer) error {
	var made driver
	defer made.close()
	lines, answers := bufio.NewReader(input), json.NewEncoder(output)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var todo command
		if err := json.Unmarshal(line, &todo); err != nil {
			return err
		}
		answer, err := made.do(&todo)
		if err != nil {
			return fmt.Errorf("%s: %w", todo.Do, err)
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
}

// do carries out one command. Its error is one of the driver or of the command, not of a call.
func (d *driver) do(c *command) (any, error) {
	ctx := context.Background()
	if c.Traceparent != "" {
		given := propagation.MapCarrier{"traceparent": c.Traceparent}
		ctx = propagation.TraceContext{}.Extract(ctx, given)
	}
	for name, value := range c.Headers {
		ctx = metadata.AppendToOutgoingContext(ctx, name, value)
	}
	if c.Do == "connect" {
		return d.connect(c)
	}
	if d.client == nil {
		return nil, errors.New("there is no client")
	}
	switch c.Do {
	case "call":
		return d.call(ctx, c)
	case "complete":
		return d.complete(ctx, c)
	case "draw":
		return d.draw(ctx, c)
	default:
		return nil, errors.New("there is no such command")
	}
}

func (d *driver) connect(c *command) (any, error) {
	d.close()
	opts := []headrace.Option{headrace.WithToken(c.Token)}
	if c.CA != "" {
		opts = append(opts, headrace.WithCA(c.CA))
	}
	if c.Cert != "" || c.Key != "" {
		opts = append(opts, headrace.WithClientCertificate(c.Cert, c.Key))
	}
	if c.Timeout != nil {
		opts = append(opts, headrace.WithTimeout(seconds(*c.Timeout)))
	}
	client, err := headrace.New(c.Target, opts...)
	if err != nil {
		return map[string]any{"error": told(err)}, nil
	}
	d.client = client
	return struct{}{}, nil
}

func (d *driver) close() {
	if d.client != nil {
		_ = d.client.Close()
		d.client = nil
	}
}

// timed gives the options of the command's call.
func (c *command) timed() []grpc.CallOption {
	if c.Timeout == nil {
		return nil
	}
	return []grpc.CallOption{headrace.CallTimeout(seconds(*c.Timeout))}
}

func seconds(number float64) time.Duration {
	return time.Duration(number * float64(time.Second))
}

package headrace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	headracev1 "headrace.dev/go/headrace/v1"
)

// Images are the images of one request.
type Images struct {
	// Images are by index: as many as the request's count.
	Images []Image
	// Started says what served the request, and with which seed and size.
	Started *headracev1.ImageStarted
	// Completed has the timings, and how often the work moved to another runner.
	Completed *headracev1.ImageCompleted
	// TraceID is that of the call, 32 hexadecimal digits.
	TraceID string
}

// Image is one finished file.
type Image struct {
	// Data is the file. Its checksum has been found to be the server's.
	Data []byte
	// Result describes it: media type, size, the seed it was made with.
	Result *headracev1.ImageResult
}

// ImageStream is work on images. Its messages tell how it goes; Collect gives the files.
type ImageStream = Stream[headracev1.StreamImageResponse, Images]

// DrawImages draws, and gives the files at the end. A file that has not the checksum which the
// server names ends it with the code DATA_LOSS.
func (c *Client) DrawImages(
	ctx context.Context, request *headracev1.StreamImageRequest, opts ...grpc.CallOption,
) (*Images, error) {
	stream, err := c.StreamImages(ctx, request, opts...)
	if err != nil {
		return nil, err
	}
	return stream.Collect()
}

// StreamImages draws, and tells how it goes.
func (c *Client) StreamImages(
	ctx context.Context, request *headracev1.StreamImageRequest, opts ...grpc.CallOption,
) (*ImageStream, error) {
	// The server refuses a count below 1.
	fold := &imageFold{count: max(1, int(request.GetCount())), files: map[int32][]byte{}}
	stub := headracev1.NewImageServiceClient(c)
	return begun(ctx, fold, opts,
		func(ctx context.Context, opts ...grpc.CallOption) (
			grpc.ServerStreamingClient[headracev1.StreamImageResponse], error,
		) {
			return stub.StreamImage(ctx, request, opts...)
		})
}

type imageFold struct {
	order[headracev1.ImageStarted, headracev1.ImageCompleted]

	count  int
	files  map[int32][]byte
	images []Image
}

func (f *imageFold) add(message *headracev1.StreamImageResponse) error {
	output := message.GetChunk() != nil || message.GetCompleted() != nil
	if err := f.next(message.GetStarted(), output); err != nil {
		return err
	}
	switch event := message.GetEvent().(type) {
	case *headracev1.StreamImageResponse_Chunk:
		chunk := event.Chunk
		file := f.files[chunk.GetIndex()]
		if chunk.GetOffset() != int64(len(file)) {
			return broken(fmt.Sprintf("the stream left out a part of image %d", chunk.GetIndex()))
		}
		f.files[chunk.GetIndex()] = append(file, chunk.GetData()...)
	case *headracev1.StreamImageResponse_Completed:
		return f.complete(event.Completed)
	}
	return nil
}

func (f *imageFold) complete(completed *headracev1.ImageCompleted) error {
	for i, result := range completed.GetImages() {
		data, came := f.files[int32(i)]
		if int(result.GetIndex()) != i || !came {
			break
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != result.GetSha256() {
			return &Error{Code: codes.DataLoss, Message: fmt.Sprintf(
				"image %d was damaged on its way: its %d bytes have not the checksum that the "+
					"server names; ask again with the same seed", i, len(data))}
		}
		f.images = append(f.images, Image{data, result})
	}
	if n := len(completed.GetImages()); len(f.images) != f.count || n != f.count || len(f.files) != n {
		return broken(fmt.Sprintf("the stream was completed without just the %d asked for", f.count))
	}
	f.completed = completed
	return nil
}

func (f *imageFold) result(traceID string) (*Images, error) {
	if f.completed == nil {
		return nil, incomplete()
	}
	return &Images{f.images, f.started, f.completed, traceID}, nil
}

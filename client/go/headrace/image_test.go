package headrace

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	headracev1 "headrace.dev/go/headrace/v1"
)

type imageResponse = headracev1.StreamImageResponse

func drawingStarted() *imageResponse {
	return &imageResponse{Event: &headracev1.StreamImageResponse_Started{
		Started: &headracev1.ImageStarted{Seed: 7},
	}}
}

func chunk(index int32, offset int64, data string) *imageResponse {
	return &imageResponse{Event: &headracev1.StreamImageResponse_Chunk{
		Chunk: &headracev1.ImageChunk{Index: index, Offset: offset, Data: []byte(data)},
	}}
}

// drawn ends a stream that has sent these files.
func drawn(files ...string) *imageResponse {
	end := &headracev1.ImageCompleted{}
	for i, file := range files {
		sum := sha256.Sum256([]byte(file))
		end.Images = append(end.Images, &headracev1.ImageResult{
			Index: int32(i), Sha256: hex.EncodeToString(sum[:]), MediaType: "image/png",
		})
	}
	return &imageResponse{Event: &headracev1.StreamImageResponse_Completed{Completed: end}}
}

func TestImagesAreCollected(t *testing.T) {
	scripted := &server{images: []*imageResponse{
		{Event: &headracev1.StreamImageResponse_Progress{Progress: &headracev1.ImageProgress{}}},
		drawingStarted(), chunk(0, 0, "one"), chunk(1, 0, "tw"), chunk(0, 3, "!"), chunk(1, 2, "o"),
		drawn("one!", "two"),
	}}
	client := scripted.connected(t)
	images, err := client.DrawImages(ctx, &headracev1.StreamImageRequest{Count: proto.Int32(2)})
	if err != nil {
		t.Fatal(err)
	}
	if len(images.Images) != 2 || !bytes.Equal(images.Images[0].Data, []byte("one!")) ||
		!bytes.Equal(images.Images[1].Data, []byte("two")) || images.Started.GetSeed() != 7 ||
		images.Images[1].Result.GetMediaType() != "image/png" || len(images.TraceID) != 32 ||
		images.Completed == nil {
		t.Errorf("%+v", images)
	}
}

func TestImagesThatAreNotWhole(t *testing.T) {
	for name, each := range map[string]struct {
		messages []*imageResponse
		wanted   codes.Code
	}{
		"damage":          {[]*imageResponse{drawingStarted(), chunk(0, 0, "one"), drawn("One")}, codes.DataLoss},
		"a gap":           {[]*imageResponse{drawingStarted(), chunk(0, 3, "one"), drawn("one")}, codes.Internal},
		"no end":          {[]*imageResponse{drawingStarted(), chunk(0, 0, "one")}, codes.Internal},
		"no file":         {[]*imageResponse{drawingStarted(), drawn("")}, codes.Internal},
		"no result":       {[]*imageResponse{drawingStarted(), chunk(0, 0, "one"), drawn()}, codes.Internal},
		"too many":        {[]*imageResponse{drawingStarted(), chunk(0, 0, "a"), chunk(1, 0, "b"), drawn("a", "b")}, codes.Internal},
		"a file too many": {[]*imageResponse{drawingStarted(), chunk(0, 0, "a"), chunk(1, 0, "b"), drawn("a")}, codes.Internal},
		"two starts":      {[]*imageResponse{drawingStarted(), drawingStarted()}, codes.Internal},
		"too early":       {[]*imageResponse{chunk(0, 0, "a")}, codes.Internal},
		"an end alone":    {[]*imageResponse{drawn()}, codes.Internal},
		"on and on": {
			[]*imageResponse{drawingStarted(), chunk(0, 0, "a"), drawn("a"), chunk(0, 1, "b")}, codes.Internal,
		},
	} {
		client := (&server{images: each.messages}).connected(t)
		images, err := client.DrawImages(ctx, &headracev1.StreamImageRequest{})
		if got := failed(t, err); images != nil || got.Code != each.wanted || len(got.TraceID) != 32 {
			t.Errorf("%s: %v, %v", name, images, err)
		}
	}
}

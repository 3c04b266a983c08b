// Package headrace is the client of Headrace, which serves MLX models over gRPC.
//
// A [Client] is a connection with all that a call needs: the address, TLS, a token, a deadline,
// retries of unary calls, a trace, and errors with types. The stubs that are generated from the
// contract make their calls over it:
//
//	client, err := headrace.New("")
//	if err != nil {
//		return err
//	}
//	defer client.Close()
//	models := headracev1.NewModelServiceClient(client)
//	list, err := models.ListModels(ctx, &headracev1.ListModelsRequest{})
//
// Two calls have helpers, which hold a stream to its word: [Client.Complete] and
// [Client.StreamCompletion] for texts, [Client.DrawImages] and [Client.StreamImages] for images.
//
// Every call that fails gives an [*Error].
package headrace

//go:generate sh -c "cd .. && buf generate"

// Version is the version of this module, and of the contract's definitions in it.
const Version = "0.1.0"

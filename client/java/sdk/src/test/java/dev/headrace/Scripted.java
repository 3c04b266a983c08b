package dev.headrace;

import dev.headrace.v1.CompletionDelta;
import dev.headrace.v1.CompletionServiceGrpc;
import dev.headrace.v1.CompletionStarted;
import dev.headrace.v1.CountTokensRequest;
import dev.headrace.v1.CountTokensResponse;
import dev.headrace.v1.GetModelRequest;
import dev.headrace.v1.GetModelResponse;
import dev.headrace.v1.ListModelsRequest;
import dev.headrace.v1.ListModelsResponse;
import dev.headrace.v1.ModelServiceGrpc;
import dev.headrace.v1.StreamCompletionRequest;
import dev.headrace.v1.StreamCompletionResponse;
import dev.headrace.v1.TokenizeServiceGrpc;
import io.grpc.Context;
import io.grpc.ForwardingServerCallListener.SimpleForwardingServerCallListener;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * A server that does what the name of the model tells it.
 *
 * <p>"missing" is NOT_FOUND; "busy" is UNAVAILABLE, the first two times that tokens are counted, or
 * for ever; "silent" never answers; "torn" is broken off just before its deadline; any other
 * answers, and a completion of it goes on for ever.
 */
final class Scripted implements AutoCloseable {
  /** Headers of the calls that came, one for each attempt. */
  final BlockingQueue<Metadata> calls = new LinkedBlockingQueue<>();

  /** Is counted down when a client cancels a call. */
  final CountDownLatch cancelled = new CountDownLatch(1);

  /** Whether the last call for a model had a deadline. */
  volatile boolean timed;

  private final Server server;
  private final String target;
  private int counts;

  Scripted() throws IOException {
    server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .maxInboundMessageSize(32 << 20)
            .intercept(new Headers())
            .addService(new Models())
            .addService(new Tokens())
            .addService(new Completions())
            .build()
            .start();
    target = "127.0.0.1:" + server.getPort();
  }

  String target() {
    return target;
  }

  /** What the next call that has not been looked at came with. */
  String header(String name) throws InterruptedException {
    return calls
        .poll(20, TimeUnit.SECONDS)
        .get(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER));
  }

  @Override
  public void close() {
    server.shutdownNow();
  }

  private final class Headers implements ServerInterceptor {
    @Override
    public <Q, R> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, R> call, Metadata headers, ServerCallHandler<Q, R> next) {
      calls.add(headers);
      return new SimpleForwardingServerCallListener<>(next.startCall(call, headers)) {
        @Override
        public void onCancel() {
          cancelled.countDown();
          super.onCancel();
        }
      };
    }
  }

  /** As a proxy does whose clock is ahead. */
  private static void tear(StreamObserver<?> answers) {
    long left = Context.current().getDeadline().timeRemaining(TimeUnit.MILLISECONDS);
    Status status =
        Status.INTERNAL.withDescription(
            "RST_STREAM closed stream. HTTP/2 error code: INTERNAL_ERROR");
    CompletableFuture.delayedExecutor(left - 20, TimeUnit.MILLISECONDS)
        .execute(() -> answers.onError(status.asRuntimeException()));
  }

  private static void refuse(String model, StreamObserver<?> answers) {
    Status status = model.equals("missing") ? Status.NOT_FOUND : Status.UNAVAILABLE;
    answers.onError(status.withDescription(model).asRuntimeException());
  }

  private final class Models extends ModelServiceGrpc.ModelServiceImplBase {
    @Override
    public void listModels(ListModelsRequest request, StreamObserver<ListModelsResponse> answers) {
      answers.onNext(ListModelsResponse.getDefaultInstance());
      answers.onCompleted();
    }

    @Override
    public void getModel(GetModelRequest request, StreamObserver<GetModelResponse> answers) {
      timed = Context.current().getDeadline() != null;
      switch (request.getModel()) {
        case "missing", "busy" -> refuse(request.getModel(), answers);
        case "silent" -> {}
        case "torn" -> tear(answers);
        default -> {
          answers.onNext(GetModelResponse.getDefaultInstance());
          answers.onCompleted();
        }
      }
    }
  }

  private final class Tokens extends TokenizeServiceGrpc.TokenizeServiceImplBase {
    @Override
    public synchronized void countTokens(
        CountTokensRequest request, StreamObserver<CountTokensResponse> answers) {
      if (request.getModel().equals("busy") && ++counts <= 2) {
        refuse(request.getModel(), answers);
        return;
      }
      answers.onNext(
          CountTokensResponse.newBuilder()
              .setTokenCount(request.getInput().getPrompt().length())
              .build());
      answers.onCompleted();
    }
  }

  private final class Completions extends CompletionServiceGrpc.CompletionServiceImplBase {
    @Override
    public void streamCompletion(
        StreamCompletionRequest request, StreamObserver<StreamCompletionResponse> answers) {
      // So that what is sent to a client that has gone is no error here.
      ((ServerCallStreamObserver<?>) answers).setOnCancelHandler(() -> {});
      if (request.getModel().equals("busy")) {
        refuse(request.getModel(), answers);
        return;
      }
      answers.onNext(
          StreamCompletionResponse.newBuilder()
              .setStarted(CompletionStarted.getDefaultInstance())
              .build());
      for (int i = 0; i < 4; i++) {
        String text = i == 1 ? "" : String.valueOf(i);
        CompletionDelta delta = CompletionDelta.newBuilder().setChoice(i / 3).setText(text).build();
        answers.onNext(StreamCompletionResponse.newBuilder().setDelta(delta).build());
      }
    }
  }
}

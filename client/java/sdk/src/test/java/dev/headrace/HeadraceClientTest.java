package dev.headrace;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.headrace.v1.ChatInput;
import dev.headrace.v1.ChatMessage;
import dev.headrace.v1.CompletionInput;
import dev.headrace.v1.CountTokensRequest;
import dev.headrace.v1.ErrorReason;
import dev.headrace.v1.GetModelRequest;
import dev.headrace.v1.GetModelResponse;
import dev.headrace.v1.ListModelsRequest;
import dev.headrace.v1.ModelServiceGrpc;
import dev.headrace.v1.StreamCompletionRequest;
import dev.headrace.v1.StreamCompletionResponse;
import dev.headrace.v1.TokenizeServiceGrpc;
import io.grpc.CallCredentials;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanContext;
import io.opentelemetry.api.trace.TraceFlags;
import io.opentelemetry.api.trace.TraceState;
import io.opentelemetry.context.Context;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executor;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.function.Executable;

/** Against a server in this process, over a real connection. */
@Timeout(60)
class HeadraceClientTest {
  private static final String TRACE = "4bf92f3577b34da6a3ce929d0e0e4736";
  private static final String SPAN = "00f067aa0ba902b7";

  private Scripted server;
  private HeadraceClient client;

  @BeforeEach
  void open() throws IOException {
    server = new Scripted();
    client =
        HeadraceClient.builder()
            .environment(Map.of())
            .target(server.target())
            .token("hr_a_b")
            .build();
  }

  @AfterEach
  void close() {
    client.close();
    server.close();
  }

  private static GetModelRequest model(String name) {
    return GetModelRequest.newBuilder().setModel(name).build();
  }

  private static StreamCompletionRequest completion(String model) {
    return StreamCompletionRequest.newBuilder().setModel(model).setPrompt("x").build();
  }

  private HeadraceException failing(HeadraceClient client, String model) {
    return assertThrows(
        HeadraceException.class,
        () -> client.call(ModelServiceGrpc.getGetModelMethod(), model(model)));
  }

  @Test
  void aCallNamesItsModelWhereAHeaderCanCarryIt() throws InterruptedException {
    client.call(ModelServiceGrpc.getGetModelMethod(), model("smollm2:135m"));
    assertEquals("smollm2:135m", server.header("headrace-model"));
    client.call(ModelServiceGrpc.getGetModelMethod(), model("größer:水"));
    assertNull(server.header("headrace-model"));
    client.call(ModelServiceGrpc.getListModelsMethod(), ListModelsRequest.getDefaultInstance());
    assertNull(server.header("headrace-model"));
    try (CompletionStream stream = client.streamCompletion(completion("a b"))) {
      assertTrue(stream.hasNext());
      assertEquals("a b", server.header("headrace-model"));
    }
  }

  @Test
  void halfASurrogatePairIsRefusedAndNotSent() throws InterruptedException {
    ChatMessage whole = ChatMessage.newBuilder().setContent("\ud83d\ude00").build();
    ChatMessage half = ChatMessage.newBuilder().setContent("x\ud83d").build();
    StreamCompletionRequest completion =
        StreamCompletionRequest.newBuilder()
            .setModel("x")
            .setChat(ChatInput.newBuilder().addMessages(whole).addMessages(half))
            .build();
    GetModelRequest unary = model("\ude00\ud83d");
    Map<String, Executable> calls =
        Map.of(
            "chat.messages[1].content",
            () -> client.streamCompletion(completion),
            "model",
            () -> client.call(ModelServiceGrpc.getGetModelMethod(), unary));
    calls.forEach(
        (field, call) -> {
          HeadraceException error = assertThrows(HeadraceException.class, call);
          assertEquals(ErrorReason.ERROR_REASON_INVALID_REQUEST, error.reason());
          assertEquals(field, error.violations().get(0).field());
        });
    HeadraceException error =
        assertThrows(
            HeadraceException.class,
            () -> ModelServiceGrpc.newBlockingStub(client.channel()).getModel(unary));
    assertEquals(ErrorReason.ERROR_REASON_INVALID_REQUEST, error.reason());
    client.call(ModelServiceGrpc.getGetModelMethod(), model("\ud83d\ude00"));
    server.header("authorization");
    assertTrue(server.calls.isEmpty());
  }

  @Test
  void aTimeoutThatIsNoneIsRefused() {
    for (Executable with :
        List.<Executable>of(
            () -> HeadraceClient.builder().timeout(null), () -> client.withTimeout(null))) {
      HeadraceException error = assertThrows(HeadraceException.class, with);
      assertEquals(ErrorReason.ERROR_REASON_INVALID_REQUEST, error.reason());
      assertTrue(error.message().contains("NO_TIMEOUT"), error.message());
    }
  }

  @Test
  void everyCallHasItsToken() throws InterruptedException {
    client.call(ModelServiceGrpc.getGetModelMethod(), model("x"));
    assertEquals("Bearer hr_a_b", server.header("authorization"));
  }

  @Test
  void aCallWithoutASpanHasATraceOfItsOwn() throws InterruptedException {
    CallTrace trace = new CallTrace();
    client.call(ModelServiceGrpc.getGetModelMethod(), model("x"), trace);
    assertTrue(trace.id().matches("[0-9a-f]{32}"), trace.id());
    String sent = server.header("traceparent");
    assertTrue(sent.matches("00-" + trace.id() + "-[0-9a-f]{16}-01"), sent);
    HeadraceException error = failing(client, "missing");
    assertTrue(server.header("traceparent").contains(error.traceId()));
    assertFalse(error.traceId().equals(trace.id()));
    assertTrue(error.getMessage().contains(error.traceId()));
  }

  @Test
  void aCallBelongsToTheTraceOfTheCurrentSpan() throws Exception {
    SpanContext span =
        SpanContext.create(
            TRACE, SPAN, TraceFlags.getDefault(), TraceState.builder().put("a", "b").build());
    HeadraceException error =
        Context.current().with(Span.wrap(span)).wrap(() -> failing(client, "missing")).call();
    assertEquals(TRACE, error.traceId());
    Metadata headers = server.calls.take();
    assertEquals("00-" + TRACE + "-" + SPAN + "-00", get(headers, "traceparent"));
    assertEquals("a=b", get(headers, "tracestate"));
  }

  @Test
  void aTraceThatACallBringsStays() throws InterruptedException {
    Metadata headers = new Metadata();
    String sent = "00-" + TRACE + "-" + SPAN + "-01";
    headers.put(Metadata.Key.of("traceparent", Metadata.ASCII_STRING_MARSHALLER), sent);
    HeadraceClient other =
        client.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
    assertEquals(TRACE, failing(other, "missing").traceId());
    assertEquals(sent, server.header("traceparent"));
  }

  @Test
  void aCallsOwnHeadersStayAndAreSentOnce() throws Exception {
    Map<String, String> own =
        Map.of(
            "authorization", "Bearer hr_other",
            "headrace-model", "other",
            "traceparent", "00-" + TRACE + "-" + SPAN + "-01");
    Metadata headers = new Metadata();
    own.forEach((name, value) -> headers.put(key(name), value));
    HeadraceClient other =
        client.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
    Span another =
        Span.wrap(
            SpanContext.create(
                SPAN + SPAN, SPAN, TraceFlags.getDefault(), TraceState.getDefault()));
    Context.current().with(another).wrap(() -> failing(other, "missing")).call();
    Metadata unary = server.calls.take();
    try (CompletionStream stream = other.streamCompletion(completion("x"))) {
      assertTrue(stream.hasNext());
    }
    Metadata streamed = server.calls.take();
    own.forEach(
        (name, value) -> {
          assertEquals(List.of(value), all(unary, name), name);
          assertEquals(List.of(value), all(streamed, name), name);
        });
  }

  @Test
  void aCallsOwnCredentialsStandAlone() throws InterruptedException {
    CallCredentials own =
        new CallCredentials() {
          @Override
          public void applyRequestMetadata(
              RequestInfo info, Executor executor, MetadataApplier applier) {
            Metadata headers = new Metadata();
            headers.put(key("authorization"), "Bearer hr_other");
            applier.apply(headers);
          }
        };
    var stub = ModelServiceGrpc.newBlockingStub(client.channel()).withCallCredentials(own);
    stub.getModel(model("x"));
    assertEquals(List.of("Bearer hr_other"), all(server.calls.take(), "authorization"));
  }

  @Test
  void stubsHaveTheSameErrorsAndTraces() throws InterruptedException {
    CallTrace trace = new CallTrace();
    var stub = trace.on(ModelServiceGrpc.newBlockingStub(client.channel()));
    StatusRuntimeException thrown =
        assertThrows(StatusRuntimeException.class, () -> stub.getModel(model("missing")));
    HeadraceException error = HeadraceException.from(thrown);
    assertEquals(Status.Code.NOT_FOUND, error.code());
    assertEquals("missing", error.message());
    assertEquals(trace.id(), error.traceId());
    assertEquals("missing", server.header("headrace-model"));
  }

  @Test
  void stubsThatDoNotBlockHaveThemToo() {
    Future<GetModelResponse> answer =
        ModelServiceGrpc.newFutureStub(client.channel()).getModel(model("missing"));
    ExecutionException thrown = assertThrows(ExecutionException.class, answer::get);
    HeadraceException error = HeadraceException.from(thrown);
    assertEquals(Status.Code.NOT_FOUND, error.code());
    assertTrue(error.traceId().matches("[0-9a-f]{32}"));
  }

  @Test
  void aFutureThatIsCancelledEndsItsCall() throws InterruptedException {
    Future<GetModelResponse> answer =
        ModelServiceGrpc.newFutureStub(client.channel()).getModel(model("silent"));
    server.header("headrace-model");
    answer.cancel(true);
    assertTrue(server.cancelled.await(20, TimeUnit.SECONDS));
  }

  @Test
  void aRequestOfMegabytesIsMadeAgain() {
    String prompt = "x".repeat(3 << 20);
    CountTokensRequest request =
        CountTokensRequest.newBuilder()
            .setModel("busy")
            .setInput(CompletionInput.newBuilder().setPrompt(prompt))
            .build();
    assertEquals(
        3 << 20, client.call(TokenizeServiceGrpc.getCountTokensMethod(), request).getTokenCount());
    assertEquals(3, server.calls.size());
  }

  @Test
  void aUnaryCallIsMadeFourTimesAndAStreamOnce() {
    assertEquals(Status.Code.UNAVAILABLE, failing(client, "busy").code());
    assertEquals(4, server.calls.size());
    server.calls.clear();
    HeadraceException error =
        assertThrows(HeadraceException.class, () -> client.complete(completion("busy")));
    assertEquals(Status.Code.UNAVAILABLE, error.code());
    assertEquals(1, server.calls.size());
  }

  @Test
  void aCallEndsAtItsTimeout() {
    HeadraceClient hasty = client.withTimeout(Duration.ofMillis(300));
    assertEquals(Status.Code.DEADLINE_EXCEEDED, failing(hasty, "silent").code());
    HeadraceException error =
        assertThrows(HeadraceException.class, () -> hasty.complete(completion("x")));
    assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code());
    assertTrue(error.traceId().matches("[0-9a-f]{32}"));
  }

  @Test
  void aCallThatAProxyBreaksOffForItsDeadlineIsLate() {
    HeadraceException error = failing(client.withTimeout(Duration.ofMillis(500)), "torn");
    assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code());
    assertTrue(error.traceId().matches("[0-9a-f]{32}"));
  }

  @Test
  void aStubsOwnDeadlineWins() {
    var stub =
        ModelServiceGrpc.newBlockingStub(client.withTimeout(Duration.ofHours(1)).channel())
            .withDeadlineAfter(300, TimeUnit.MILLISECONDS);
    StatusRuntimeException thrown =
        assertThrows(StatusRuntimeException.class, () -> stub.getModel(model("silent")));
    assertEquals(Status.Code.DEADLINE_EXCEEDED, thrown.getStatus().getCode());
  }

  @Test
  void aTimeoutCanBeLiftedAndIsNeverNegative() {
    HeadraceClient hasty = client.withTimeout(Duration.ofHours(1)).withInterceptors();
    hasty.call(ModelServiceGrpc.getGetModelMethod(), model("x"));
    assertTrue(server.timed);
    hasty
        .withTimeout(HeadraceClient.NO_TIMEOUT)
        .call(ModelServiceGrpc.getGetModelMethod(), model("x"));
    assertFalse(server.timed);
    assertThrows(HeadraceException.class, () -> client.withTimeout(Duration.ofNanos(-1)));
    assertEquals(
        Status.Code.DEADLINE_EXCEEDED, failing(client.withTimeout(Duration.ZERO), "x").code());
  }

  @Test
  void theTextIsThatOfTheFirstChoice() {
    List<String> texts = new ArrayList<>();
    try (CompletionStream stream = client.streamCompletion(completion("x"))) {
      for (String text : stream.text()) {
        texts.add(text);
        if (texts.size() == 2) {
          break;
        }
      }
    }
    assertEquals(List.of("0", "2"), texts);
  }

  @Test
  void closingAStreamEndsItOnTheServerAndUnderItsReader() throws Exception {
    CompletionStream stream = client.streamCompletion(completion("x"));
    StreamCompletionResponse first = stream.next();
    assertTrue(first.hasStarted());
    Thread closer = new Thread(stream::close);
    closer.start();
    HeadraceException error = assertThrows(HeadraceException.class, stream::collect);
    closer.join();
    assertEquals(Status.Code.CANCELLED, error.code());
    assertEquals(stream.traceId(), error.traceId());
    assertTrue(server.cancelled.await(20, TimeUnit.SECONDS));
    assertEquals(error, assertThrows(HeadraceException.class, stream::hasNext));
  }

  @Test
  void aReaderThatIsInterruptedStops() throws InterruptedException {
    try (CompletionStream stream = client.streamCompletion(completion("x"))) {
      assertTrue(stream.next().hasStarted());
      Thread.currentThread().interrupt();
      HeadraceException error = assertThrows(HeadraceException.class, stream::collect);
      assertEquals(Status.Code.CANCELLED, error.code());
      assertTrue(Thread.interrupted());
    }
    assertTrue(server.cancelled.await(20, TimeUnit.SECONDS));
  }

  @Test
  void whyThereIsNoConnectionIsTold() {
    server.close();
    try (HeadraceClient other =
        HeadraceClient.builder().environment(Map.of()).target(server.target()).build()) {
      HeadraceException error = failing(other, "x");
      assertEquals(Status.Code.UNAVAILABLE, error.code());
      assertTrue(error.message().contains("refused"), error.message());
    }
  }

  @Test
  void aClientThatIsClosedSaysSo() {
    client.close();
    assertEquals(Status.Code.UNAVAILABLE, failing(client, "x").code());
  }

  private static String get(Metadata headers, String name) {
    return headers.get(key(name));
  }

  private static List<String> all(Metadata headers, String name) {
    List<String> values = new ArrayList<>();
    headers.getAll(key(name)).forEach(values::add);
    return values;
  }

  private static Metadata.Key<String> key(String name) {
    return Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
  }
}

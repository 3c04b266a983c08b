package dev.headrace.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.util.JsonFormat;
import dev.headrace.CallTrace;
import dev.headrace.Completion;
import dev.headrace.HeadraceClient;
import dev.headrace.HeadraceException;
import dev.headrace.Images;
import dev.headrace.ServerStream;
import dev.headrace.v1.StreamCompletionRequest;
import dev.headrace.v1.StreamImageRequest;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.stub.MetadataUtils;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanContext;
import io.opentelemetry.api.trace.TraceFlags;
import io.opentelemetry.api.trace.TraceState;
import io.opentelemetry.context.Context;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.time.Duration;
import java.util.HexFormat;
import java.util.Map;
import java.util.Optional;

/** The driver of the Java SDK: tests/conformance/README.md says what a driver does. */
public final class Driver implements AutoCloseable {
  private static final double NANOS = 1e9;
  private static final JsonFormat.Printer PRINTER =
      JsonFormat.printer().omittingInsignificantWhitespace();

  private HeadraceClient client;

  private Driver() {}

  /** Answers commands until the end of the input. */
  public static void main(String[] arguments) throws Exception {
    PrintStream answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    BufferedReader commands =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    try (Driver driver = new Driver()) {
      for (String line = commands.readLine(); line != null; line = commands.readLine()) {
        answers.println(driver.answer(JsonParser.parseString(line).getAsJsonObject()));
      }
    }
  }

  private JsonObject answer(JsonObject command) throws Exception {
    return within(text(command, "traceparent")).wrap(() -> carryOut(command)).call();
  }

  private JsonObject carryOut(JsonObject command) throws IOException {
    return switch (command.get("do").getAsString()) {
      case "connect" -> connect(command);
      case "call" -> call(command, Methods.find(command.get("method").getAsString()));
      case "complete" -> complete(command);
      case "draw" -> draw(command);
      default -> throw new IllegalArgumentException("no such command: " + command.get("do"));
    };
  }

  private JsonObject connect(JsonObject command) {
    close();
    HeadraceClient.Builder builder =
        HeadraceClient.builder()
            .environment(Map.of())
            .target(command.get("target").getAsString())
            .token(text(command, "token").orElse(""));
    text(command, "ca").map(Path::of).ifPresent(builder::authorities);
    text(command, "cert")
        .ifPresent(
            certificate ->
                builder.clientCertificate(
                    Path.of(certificate), Path.of(command.get("key").getAsString())));
    timeout(command).ifPresent(builder::timeout);
    JsonObject answer = new JsonObject();
    try {
      client = builder.build();
    } catch (HeadraceException error) {
      answer.add("error", told(error));
    }
    return answer;
  }

  private JsonObject call(JsonObject command, MethodDescriptor<Message, Message> method)
      throws IOException {
    HeadraceClient client = client(command);
    JsonElement values = command.has("request") ? command.get("request") : new JsonObject();
    Message request = Methods.request(method, values);
    JsonArray messages = new JsonArray();
    JsonObject answer = new JsonObject();
    answer.add("messages", messages);
    answer.add("error", JsonNull.INSTANCE);
    CallTrace trace = new CallTrace();
    try {
      if (method.getType() == MethodDescriptor.MethodType.UNARY) {
        messages.add(json(client.call(method, request, trace)));
        answer.addProperty("trace_id", trace.id());
      } else {
        int most = command.has("cancel_after") ? command.get("cancel_after").getAsInt() : -1;
        try (ServerStream<Message> stream = client.stream(method, request)) {
          answer.addProperty("trace_id", stream.traceId());
          while (messages.size() != most && stream.hasNext()) {
            messages.add(json(stream.next()));
          }
        }
      }
    } catch (HeadraceException error) {
      fail(answer, error);
    }
    return answer;
  }

  private JsonObject complete(JsonObject command) throws IOException {
    StreamCompletionRequest.Builder request = StreamCompletionRequest.newBuilder();
    JsonFormat.parser().merge(command.get("request").toString(), request);
    JsonObject answer = new JsonObject();
    try {
      Completion whole = client(command).complete(request.build());
      JsonArray tokens = new JsonArray();
      whole.tokenIds().forEach(tokens::add);
      answer.addProperty("text", whole.text());
      answer.add("token_ids", tokens);
      answer.addProperty("finish_reason", whole.finishReason().name());
      answer.addProperty("input_tokens", whole.usage().getPromptTokens());
      answer.addProperty("output_tokens", whole.usage().getOutputTokens());
      answer.addProperty("resumes", whole.resumes());
      answer.addProperty("trace_id", whole.traceId());
      answer.add("error", JsonNull.INSTANCE);
    } catch (HeadraceException error) {
      fail(answer, error);
    }
    return answer;
  }

  private JsonObject draw(JsonObject command) throws IOException {
    StreamImageRequest.Builder request = StreamImageRequest.newBuilder();
    JsonFormat.parser().merge(command.get("request").toString(), request);
    JsonObject answer = new JsonObject();
    try {
      Images drawn = client(command).image(request.build());
      JsonArray images = new JsonArray();
      for (Images.Image image : drawn.images()) {
        JsonObject told = new JsonObject();
        told.addProperty("sha256", sha256(image.data()));
        told.addProperty("bytes", image.data().size());
        told.addProperty("media_type", image.result().getMediaType());
        images.add(told);
      }
      answer.add("images", images);
      answer.addProperty("trace_id", drawn.traceId());
      answer.add("error", JsonNull.INSTANCE);
    } catch (HeadraceException error) {
      fail(answer, error);
    }
    return answer;
  }

  /** The client as a command wants it. */
  private HeadraceClient client(JsonObject command) {
    HeadraceClient wanted = client;
    if (command.has("headers")) {
      Metadata headers = new Metadata();
      command
          .getAsJsonObject("headers")
          .asMap()
          .forEach(
              (name, value) ->
                  headers.put(
                      Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER),
                      value.getAsString()));
      wanted = wanted.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
    }
    Optional<Duration> timeout = timeout(command);
    return timeout.isPresent() ? wanted.withTimeout(timeout.get()) : wanted;
  }

  /** Where a span of this trace is the current one. */
  private static Context within(Optional<String> traceparent) {
    if (traceparent.isEmpty()) {
      return Context.current();
    }
    String[] parts = traceparent.get().split("-");
    SpanContext span =
        SpanContext.createFromRemoteParent(
            parts[1], parts[2], TraceFlags.fromHex(parts[3], 0), TraceState.getDefault());
    return Context.current().with(Span.wrap(span));
  }

  private static void fail(JsonObject answer, HeadraceException error) {
    answer.addProperty("trace_id", error.traceId());
    answer.add("error", told(error));
  }

  private static JsonObject told(HeadraceException error) {
    JsonObject metadata = new JsonObject();
    error.metadata().forEach(metadata::addProperty);
    JsonArray violations = new JsonArray();
    for (HeadraceException.FieldViolation violation : error.violations()) {
      JsonObject each = new JsonObject();
      each.addProperty("field", violation.field());
      each.addProperty("description", violation.description());
      violations.add(each);
    }
    JsonObject told = new JsonObject();
    told.addProperty("code", error.code().name());
    told.addProperty("reason", error.reasonName());
    told.addProperty("message", error.message());
    told.add("metadata", metadata);
    told.addProperty(
        "retry_after", error.retryAfter().map(delay -> delay.toNanos() / NANOS).orElse(null));
    told.add("violations", violations);
    return told;
  }

  private static JsonElement json(Message message) throws InvalidProtocolBufferException {
    return JsonParser.parseString(PRINTER.print(message));
  }

  private static Optional<String> text(JsonObject command, String name) {
    return Optional.ofNullable(command.get(name))
        .filter(value -> !value.isJsonNull())
        .map(JsonElement::getAsString);
  }

  private static Optional<Duration> timeout(JsonObject command) {
    return Optional.ofNullable(command.get("timeout"))
        .filter(value -> !value.isJsonNull())
        .map(value -> Duration.ofNanos((long) (value.getAsDouble() * NANOS)));
  }

  private static String sha256(ByteString data) {
    try {
      byte[] digest = MessageDigest.getInstance("SHA-256").digest(data.toByteArray());
      return HexFormat.of().formatHex(digest);
    } catch (NoSuchAlgorithmException impossible) {
      throw new AssertionError("every Java has SHA-256", impossible);
    }
  }

  @Override
  public void close() {
    if (client != null) {
      client.close();
      client = null;
    }
  }
}

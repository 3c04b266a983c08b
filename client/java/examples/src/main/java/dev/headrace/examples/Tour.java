package dev.headrace.examples;

import dev.headrace.CompletionStream;
import dev.headrace.HeadraceClient;
import dev.headrace.HeadraceException;
import dev.headrace.v1.ChatInput;
import dev.headrace.v1.ChatMessage;
import dev.headrace.v1.ChatRole;
import dev.headrace.v1.GetModelRequest;
import dev.headrace.v1.ModelServiceGrpc;
import dev.headrace.v1.SamplingOptions;
import dev.headrace.v1.StreamCompletionRequest;

/** Asks a model a question and shows the answer as it comes. */
public final class Tour {
  private Tour() {}

  /**
   * Takes the model's name and the question, or has its own; the controller is that of
   * HEADRACE_HOST.
   */
  public static void main(String[] arguments) {
    String model = arguments.length > 0 ? arguments[0] : "smollm2:135m";
    String question = arguments.length > 1 ? arguments[1] : "What is the capital of France?";
    StreamCompletionRequest request =
        StreamCompletionRequest.newBuilder()
            .setModel(model)
            .setChat(
                ChatInput.newBuilder()
                    .addMessages(
                        ChatMessage.newBuilder()
                            .setRole(ChatRole.CHAT_ROLE_USER)
                            .setContent(question)))
            .setSampling(SamplingOptions.newBuilder().setTemperature(0))
            .setMaxTokens(32)
            .build();

    try (HeadraceClient client = HeadraceClient.create()) {
      GetModelRequest wanted = GetModelRequest.newBuilder().setModel(model).build();
      var found = client.call(ModelServiceGrpc.getGetModelMethod(), wanted).getModel();
      System.out.printf("%s, %,d parameters%n", found.getName(), found.getParameters());

      try (CompletionStream stream = client.streamCompletion(request)) {
        for (String text : stream.text()) {
          System.out.print(text);
          System.out.flush();
        }
        var whole = stream.collect();
        System.out.printf(
            "%n%s, %d tokens, trace %s%n",
            whole.finishReason(), whole.usage().getOutputTokens(), whole.traceId());
      }
    } catch (HeadraceException error) {
      System.err.println(error.getMessage());
      System.exit(1);
    }
  }
}

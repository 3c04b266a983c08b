package dev.headrace.conformance;

import com.google.gson.JsonElement;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.util.JsonFormat;
import dev.headrace.v1.CompletionServiceGrpc;
import dev.headrace.v1.EmbeddingServiceGrpc;
import dev.headrace.v1.ImageServiceGrpc;
import dev.headrace.v1.ModelServiceGrpc;
import dev.headrace.v1.RunnerServiceGrpc;
import dev.headrace.v1.ScoreServiceGrpc;
import dev.headrace.v1.TokenizeServiceGrpc;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.PrototypeMarshaller;
import io.grpc.ServiceDescriptor;
import io.grpc.health.v1.HealthGrpc;
import java.util.List;

/** The methods of the contract, by their paths. */
final class Methods {
  private static final List<ServiceDescriptor> SERVICES =
      List.of(
          CompletionServiceGrpc.getServiceDescriptor(),
          EmbeddingServiceGrpc.getServiceDescriptor(),
          HealthGrpc.getServiceDescriptor(),
          ImageServiceGrpc.getServiceDescriptor(),
          ModelServiceGrpc.getServiceDescriptor(),
          RunnerServiceGrpc.getServiceDescriptor(),
          ScoreServiceGrpc.getServiceDescriptor(),
          TokenizeServiceGrpc.getServiceDescriptor());

  private Methods() {}

  /** The method of a path such as "/headrace.v1.ModelService/GetModel". */
  @SuppressWarnings("unchecked") // all of them have messages
  static MethodDescriptor<Message, Message> find(String path) {
    return SERVICES.stream()
        .flatMap(service -> service.getMethods().stream())
        .filter(method -> path.equals("/" + method.getFullMethodName()))
        .map(method -> (MethodDescriptor<Message, Message>) method)
        .findFirst()
        .orElseThrow(() -> new IllegalArgumentException("no such method: " + path));
  }

  /** A request of a method, out of JSON. */
  static Message request(MethodDescriptor<Message, Message> method, JsonElement values)
      throws InvalidProtocolBufferException {
    PrototypeMarshaller<Message> marshaller =
        (PrototypeMarshaller<Message>) method.getRequestMarshaller();
    Message.Builder builder = marshaller.getMessagePrototype().newBuilderForType();
    JsonFormat.parser().merge(values.toString(), builder);
    return builder.build();
  }
}

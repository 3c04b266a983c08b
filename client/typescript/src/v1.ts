/** The contract, as generated: messages, enums and services of `headrace.v1`, and gRPC's health. */

export * from "./gen/grpc/health/v1/health_pb.js";
export * from "./gen/headrace/v1/common_pb.js";
export * from "./gen/headrace/v1/completion_pb.js";
export * from "./gen/headrace/v1/embedding_pb.js";
export * from "./gen/headrace/v1/errors_pb.js";
export * from "./gen/headrace/v1/image_pb.js";
export * from "./gen/headrace/v1/model_pb.js";
export * from "./gen/headrace/v1/runner_pb.js";
export * from "./gen/headrace/v1/score_pb.js";
export * from "./gen/headrace/v1/tokenize_pb.js";

/** What Node and browsers share. */

export { type CallOptions, Code } from "@connectrpc/connect";
export type { CallDefaults } from "./calls.js";
export { type CompletionRequest, HeadraceClient, type ImageRequest } from "./client.js";
export type { Choice, CompletedToolCall, Completion, CompletionStream } from "./completion.js";
export { type ErrorDetails, type FieldViolation, HeadraceError, type Reason } from "./errors.js";
export type { DrawnImage, ImageStream, Images } from "./image.js";
export type { EventStream } from "./streams.js";
export { traceIdOf } from "./trace.js";

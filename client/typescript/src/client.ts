/** The client of Headrace, whatever the transport. */

import type { DescService, MessageInitShape } from "@bufbuild/protobuf";
import type { CallOptions, Client as Stubs, Transport } from "@connectrpc/connect";
import { type CallDefaults, Calls } from "./calls.js";
import { type Completion, CompletionFold, CompletionStream } from "./completion.js";
import { Health } from "./gen/grpc/health/v1/health_pb.js";
import {
  CompletionService,
  type StreamCompletionRequestSchema,
} from "./gen/headrace/v1/completion_pb.js";
import { EmbeddingService } from "./gen/headrace/v1/embedding_pb.js";
import { ImageService, type StreamImageRequestSchema } from "./gen/headrace/v1/image_pb.js";
import { ModelService } from "./gen/headrace/v1/model_pb.js";
import { RunnerService } from "./gen/headrace/v1/runner_pb.js";
import { ScoreService } from "./gen/headrace/v1/score_pb.js";
import { TokenizeService } from "./gen/headrace/v1/tokenize_pb.js";
import { ImageFold, ImageStream, type Images } from "./image.js";

/** What a completion is asked by: the contract's message, as an object. */
export type CompletionRequest = MessageInitShape<typeof StreamCompletionRequestSchema>;
/** What images are asked by. */
export type ImageRequest = MessageInitShape<typeof StreamImageRequestSchema>;

/** Every service of the contract by its stubs, and what makes streams easy to use. Every call throws
 * HeadraceError where it fails, and nothing else.
 *
 * `headrace/node` and `headrace/web` make one; take this type where either will do. */
export class HeadraceClient {
  readonly completion: Stubs<typeof CompletionService>;
  readonly embedding: Stubs<typeof EmbeddingService>;
  readonly health: Stubs<typeof Health>;
  readonly image: Stubs<typeof ImageService>;
  readonly model: Stubs<typeof ModelService>;
  readonly runner: Stubs<typeof RunnerService>;
  readonly score: Stubs<typeof ScoreService>;
  readonly tokenize: Stubs<typeof TokenizeService>;
  readonly #calls: Calls;

  /**
   * @param transport - of Connect, of one's own
   * @param target - what errors call the server
   * @param defaults - what holds for every call
   */
  constructor(transport: Transport, target: string, defaults: CallDefaults = {}) {
    this.#calls = new Calls(transport, target, defaults);
    this.completion = this.stubs(CompletionService);
    this.embedding = this.stubs(EmbeddingService);
    this.health = this.stubs(Health);
    this.image = this.stubs(ImageService);
    this.model = this.stubs(ModelService);
    this.runner = this.stubs(RunnerService);
    this.score = this.stubs(ScoreService);
    this.tokenize = this.stubs(TokenizeService);
  }

  /** The stubs of a service, with all that this client's calls have. */
  stubs<S extends DescService>(service: S): Stubs<S> {
    return this.#calls.stubs(service);
  }

  /** Generates text; gives the stream of it. */
  streamCompletion(request: CompletionRequest, options: CallOptions = {}): CompletionStream {
    const [abort, linked] = cancellable(options);
    const { streamCompletion } = CompletionService.method;
    const messages = this.#calls.stream(streamCompletion, request, linked);
    return new CompletionStream(messages, new CompletionFold(request.n ?? 1), abort);
  }

  /** Generates text; gives the whole. */
  async complete(request: CompletionRequest, options: CallOptions = {}): Promise<Completion> {
    return await this.streamCompletion(request, options).collect();
  }

  /** Draws images; gives the stream of how it goes. */
  streamImage(request: ImageRequest, options: CallOptions = {}): ImageStream {
    const [abort, linked] = cancellable(options);
    const messages = this.#calls.stream(ImageService.method.streamImage, request, linked);
    return new ImageStream(messages, new ImageFold(request.count ?? 1), abort);
  }

  /** Draws images; gives the files, each held against its checksum. */
  async draw(request: ImageRequest, options: CallOptions = {}): Promise<Images> {
    return await this.streamImage(request, options).collect();
  }
}

function cancellable(options: CallOptions): [AbortController, CallOptions] {
  const abort = new AbortController();
  const signals = [abort.signal, ...(options.signal ? [options.signal] : [])];
  return [abort, { ...options, signal: AbortSignal.any(signals) }];
}

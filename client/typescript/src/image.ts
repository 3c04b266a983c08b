/** Images: their stream, and the files that it brings, each held against its checksum. */

import { Code } from "@connectrpc/connect";
import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex, concatBytes } from "@noble/hashes/utils.js";
import { HeadraceError } from "./errors.js";
import type {
  ImageChunk,
  ImageCompleted,
  ImageResult,
  ImageStarted,
  StreamImageResponse,
} from "./gen/headrace/v1/image_pb.js";
import { broken, checkOrder, EventStream, type Fold } from "./streams.js";

/** One finished file, and what the server says of it: seed, size, media type, checksum. */
export interface DrawnImage {
  readonly data: Uint8Array<ArrayBuffer>;
  readonly result: ImageResult;
}

/** All images of a request. */
export interface Images {
  readonly images: readonly DrawnImage[];
  readonly started: ImageStarted;
  /** With the timings. */
  readonly completed: ImageCompleted;
  /** How many times the work moved to another runner. */
  readonly resumes: number;
  readonly traceId: string;
}

/** The stream of images: progress, previews, and pieces of files. */
export class ImageStream extends EventStream<StreamImageResponse, Images> {}

/** Folds a stream of images. */
export class ImageFold implements Fold<StreamImageResponse, Images> {
  readonly #count: number;
  readonly #files = new Map<number, File>();
  #images: DrawnImage[] = [];
  #started: ImageStarted | undefined;
  #completed: ImageCompleted | undefined;

  /** `count`: images that were asked for. */
  constructor(count: number) {
    this.#count = count;
  }

  add({ event }: StreamImageResponse): void {
    checkOrder(event.case, this.#started, this.#completed);
    switch (event.case) {
      case "started":
        this.#started = event.value;
        break;
      case "chunk":
        this.#append(event.value);
        break;
      case "completed":
        this.#complete(event.value);
        break;
    }
  }

  result(traceId: string): Images | undefined {
    const [started, completed] = [this.#started, this.#completed];
    if (!started || !completed) return undefined;
    return { images: this.#images, started, completed, resumes: completed.resumed, traceId };
  }

  #append({ index, offset, data }: ImageChunk): void {
    const file = this.#files.get(index) ?? new File();
    this.#files.set(index, file);
    if (offset !== BigInt(file.length))
      throw broken(`the stream left out a part of image ${index}`);
    file.append(data);
  }

  #complete(completed: ImageCompleted): void {
    this.#images = completed.images.map((result) => {
      const file = this.#files.get(result.index) ?? new File();
      this.#files.delete(result.index);
      return { data: file.checked(result), result };
    });
    const whole = completed.images.every(({ index }, place) => index === place);
    if (!whole || this.#images.length !== this.#count || this.#files.size > 0) {
      throw broken(`the stream was completed without just the ${this.#count} asked for`);
    }
    this.#completed = completed;
  }
}

class File {
  readonly #pieces: Uint8Array[] = [];
  readonly #hash = sha256.create();
  length = 0;

  append(data: Uint8Array): void {
    this.#pieces.push(data);
    this.#hash.update(data);
    this.length += data.length;
  }

  checked({ index, sha256: wanted }: ImageResult): Uint8Array<ArrayBuffer> {
    if (bytesToHex(this.#hash.digest()) !== wanted) {
      const message = `image ${index} was damaged on its way: its ${this.length} bytes have not the \
checksum that the server names; ask again with the same seed`;
      throw new HeadraceError(Code.DataLoss, message);
    }
    return concatBytes(...this.#pieces) as Uint8Array<ArrayBuffer>;
  }
}

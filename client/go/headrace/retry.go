package headrace

// Unary calls are made again while the server is UNAVAILABLE, up to four times in all, after 0.1,
// 0.2 and 0.4 s with jitter, or when the server says. Of the methods of the contract those are named
// here that do not stream, as what a stream has brought would be lost, and that leave the store as it
// is: the first attempt may have reached the server, and a second would fail for what it has done.
const serviceConfig = `{
  "methodConfig": [{
    "name": [
      {"service": "headrace.v1.EmbeddingService"},
      {"service": "headrace.v1.ScoreService"},
      {"service": "headrace.v1.TokenizeService"},
      {"service": "headrace.v1.ModelService", "method": "GetModel"},
      {"service": "headrace.v1.ModelService", "method": "ListModels"},
      {"service": "headrace.v1.ModelService", "method": "ListRunners"},
      {"service": "headrace.v1.ModelService", "method": "LoadModel"},
      {"service": "headrace.v1.ModelService", "method": "UnloadModel"},
      {"service": "headrace.v1.RunnerService", "method": "Abort"},
      {"service": "headrace.v1.RunnerService", "method": "Drain"},
      {"service": "headrace.v1.RunnerService", "method": "GetRunner"},
      {"service": "grpc.health.v1.Health", "method": "Check"}
    ],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.1s",
      "maxBackoff": "1s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

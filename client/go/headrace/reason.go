package headrace

import "errors"

// Reason says why a call failed, in a form that programs can act on: the name of a value of
// [headracev1.ErrorReason] without its prefix. Servers may have reasons that are not listed here;
// treat an unknown one by the status code.
//
// A Reason is an error, so that errors.Is finds it in what a call gave:
//
//	if errors.Is(err, headrace.ReasonModelNotFound) {
//
// [headracev1.ErrorReason]: https://pkg.go.dev/headrace.dev/go/headrace/v1#ErrorReason
type Reason string

// The reasons of the contract. Their metadata is documented with [headracev1.ErrorReason].
//
// [headracev1.ErrorReason]: https://pkg.go.dev/headrace.dev/go/headrace/v1#ErrorReason
const (
	ReasonInvalidRequest        Reason = "INVALID_REQUEST"
	ReasonContextLengthExceeded Reason = "CONTEXT_LENGTH_EXCEEDED"
	ReasonUnsupportedParameter  Reason = "UNSUPPORTED_PARAMETER"
	ReasonUnsupportedCapability Reason = "UNSUPPORTED_CAPABILITY"
	ReasonUnsupportedModel      Reason = "UNSUPPORTED_MODEL"
	ReasonModelNotFound         Reason = "MODEL_NOT_FOUND"
	ReasonModelCorrupt          Reason = "MODEL_CORRUPT"
	ReasonModelMismatch         Reason = "MODEL_MISMATCH"
	ReasonModelInUse            Reason = "MODEL_IN_USE"
	ReasonModelTooLarge         Reason = "MODEL_TOO_LARGE"
	ReasonDraining              Reason = "DRAINING"
	ReasonQueueFull             Reason = "QUEUE_FULL"
	ReasonDeadlineUnreachable   Reason = "DEADLINE_UNREACHABLE"
	ReasonInsufficientMemory    Reason = "INSUFFICIENT_MEMORY"
	ReasonInsufficientDisk      Reason = "INSUFFICIENT_DISK"
	ReasonLoadFailed            Reason = "LOAD_FAILED"
	ReasonRunnerCrashed         Reason = "RUNNER_CRASHED"
	ReasonCircuitOpen           Reason = "CIRCUIT_OPEN"
	ReasonSourceUnavailable     Reason = "SOURCE_UNAVAILABLE"
	ReasonUnauthenticated       Reason = "UNAUTHENTICATED"
	ReasonPermissionDenied      Reason = "PERMISSION_DENIED"
	ReasonRateLimited           Reason = "RATE_LIMITED"
	ReasonNotImplemented        Reason = "NOT_IMPLEMENTED"
	ReasonInternal              Reason = "INTERNAL"
)

// Error gives the reason as text.
func (r Reason) Error() string { return "headrace: " + string(r) }

// ReasonOf gives the reason of an error that a call gave; "" where it has none.
func ReasonOf(err error) Reason {
	var failed *Error
	if errors.As(err, &failed) {
		return failed.Reason
	}
	return ""
}

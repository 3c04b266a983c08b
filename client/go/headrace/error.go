package headrace

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	errorDomain = "headrace.dev"
	// How gRPC names a stream that a proxy breaks off because the server behind it is gone.
	brokenOff = "RST_STREAM"
	// How gRPC begins the message of a request that Protobuf cannot carry.
	notEncoded = "grpc: error while marshaling: "
)

// Error is the error of every call that fails. Get it by errors.As, or ask with errors.Is for a
// [Reason], for context.Canceled or for context.DeadlineExceeded.
type Error struct {
	// Code is the canonical status code.
	Code codes.Code
	// Reason is the contract's; "" if the server gave none, as when none was reached.
	Reason Reason
	// Message is for people: what happened, and what to do about it.
	Message string
	// Metadata has the keys that the contract documents for the reason.
	Metadata map[string]string
	// Violations are the fields of the request that are at fault.
	Violations []FieldViolation
	// TraceID of the call, 32 hexadecimal digits; "" where nothing was sent.
	TraceID string

	retryAfter *time.Duration
	status     *status.Status
}

// FieldViolation is a field of a request that breaks a rule.
type FieldViolation struct {
	// Field is its path, such as "sampling.temperature" or "stop.strings[2]".
	Field string
	// Description is the rule, in words.
	Description string
}

// Error gives code, reason, message and trace.
func (e *Error) Error() string {
	var text strings.Builder
	name := code.Code(e.Code).String() // as the contract writes it, such as NOT_FOUND
	text.WriteString("headrace: " + name)
	if e.Reason != "" && string(e.Reason) != name {
		fmt.Fprintf(&text, " (%s)", string(e.Reason))
	}
	if e.Message != "" {
		text.WriteString(": " + e.Message)
	}
	if e.TraceID != "" {
		fmt.Fprintf(&text, " [trace %s]", e.TraceID)
	}
	return text.String()
}

// RetryAfter gives the time after which a new try makes sense, and whether the server said so.
func (e *Error) RetryAfter() (time.Duration, bool) {
	if e.retryAfter == nil {
		return 0, false
	}
	return *e.retryAfter, true
}

// Is reports whether target is the error's [Reason], or what its code is to package context.
func (e *Error) Is(target error) bool {
	if reason, ok := target.(Reason); ok {
		return reason != "" && e.Reason == reason
	}
	return target == context.Canceled && e.Code == codes.Canceled ||
		target == context.DeadlineExceeded && e.Code == codes.DeadlineExceeded
}

// GRPCStatus gives the status as it came, details included, for the functions of package status.
func (e *Error) GRPCStatus() *status.Status {
	if e.status == nil {
		return status.New(e.Code, e.Message)
	}
	return e.status
}

// FromError gives the [*Error] of an error that a gRPC call gave, also of one that was not made by
// a [Client]. It gives nil for nil.
func FromError(err error) *Error {
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	var carrier interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &carrier) || carrier.GRPCStatus() == nil {
		return fromStatus(status.FromContextError(err))
	}
	return fromStatus(carrier.GRPCStatus())
}

func fromStatus(st *status.Status) *Error {
	failed := &Error{Code: st.Code(), Message: st.Message(), status: st}
	for _, detail := range st.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == errorDomain {
				failed.Reason = Reason(detail.GetReason())
				failed.Metadata = detail.GetMetadata()
			}
		case *errdetails.RetryInfo:
			delay := detail.GetRetryDelay().AsDuration()
			failed.retryAfter = &delay
		case *errdetails.BadRequest:
			for _, each := range detail.GetFieldViolations() {
				violation := FieldViolation{each.GetField(), each.GetDescription()}
				failed.Violations = append(failed.Violations, violation)
			}
		}
	}
	if failed.Reason == "" && failed.Code == codes.Internal {
		// Headrace's own INTERNAL has a reason; these two are the library's.
		if cause, ok := strings.CutPrefix(failed.Message, notEncoded); ok {
			return invalid("the request cannot be sent: %s", cause)
		}
		if strings.Contains(failed.Message, brokenOff) {
			failed.Code = codes.Unavailable
			failed.status = status.New(failed.Code, failed.Message)
		}
	}
	return failed
}

// invalid is the error of what is refused before anything is sent.
func invalid(format string, arguments ...any) *Error {
	return &Error{
		Code:    codes.InvalidArgument,
		Reason:  ReasonInvalidRequest,
		Message: fmt.Sprintf(format, arguments...),
	}
}

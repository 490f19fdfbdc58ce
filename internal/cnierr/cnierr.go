// Package cnierr defines the one error type of Manifold and its only mapping to CNI error
// codes.
//
// An error tells what was being done (Op), the kind of the failure (Kind), what it
// concerns (Subject: pod, network, interface, resource, device), what the reader should
// do (Fix), and the cause (Err). Functions return such errors and never log them. A
// caller that knows more of the subject adds it with [Annotate], so the innermost
// function need not know the pod it works for. The program's entry point turns the error
// into a CNI error object once, with [ToCNI].
//
// Kinds are append-only: they cross the agent's socket as numbers, and the shim may be
// older or newer than the agent.
package cnierr

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// Kind classifies a failure. The zero Kind, Other, means that nobody classified it. New
// kinds go at the end, before kindEnd; kinds are never renumbered.
type Kind int

// The kinds of failure. Each has one CNI code; see [Kind.Code].
const (
	Other               Kind = iota // unclassified
	InvalidEnvironment              // CNI_* variables missing or malformed
	IO                              // a file, socket or netlink operation failed
	Decode                          // stdin or a stored document cannot be decoded
	InvalidConfig                   // Manifold's own configuration is wrong
	IncompatibleVersion             // the requested CNI version is not supported
	TryAgain                        // a source is not ready; the same request may succeed later
	NotReady                        // STATUS: the plugin cannot serve ADD
	InvalidAnnotation               // the pod's network annotation is wrong
	DefinitionMissing               // the selected definition does not exist anywhere
	InvalidDefinition               // the definition's configuration is wrong
	Isolation                       // the pod may not use definitions of that namespace
	NoDevice                        // fewer devices allocated than attachments need
	DeviceConflict                  // a pinned device is not this pod's, or the sources disagree
	DeviceVanished                  // the allocated device is not on this node
	DelegateMissing                 // the delegate's program is absent or not executable
	DelegateFailed                  // the delegate failed, died or printed garbage
	DelegateTimeout                 // the delegate did not exit in time
	VerifyFailed                    // the interface is not what the plan and the result say
	InterfaceConflict               // an interface of the requested name exists already
	JournalVersion                  // the journal was written by a newer version
	JournalCorrupt                  // the journal cannot be read
	TeardownIncomplete              // something was left behind and will be retried
	Busy                            // another operation on the same sandbox is still running
	UnknownContainer                // the sandbox is not attached
	Quarantined                     // the device could not be reset after its last use
	kindEnd
)

// Codes of the CNI specification for STATUS.
const (
	codeNotAvailable = 50 // the plugin cannot serve ADD
	codeLimited      = 51 // the plugin cannot serve ADD, and attached sandboxes may have limited connectivity
)

// kindInfo is the name and the CNI code of a kind. Codes below 100 are the well-known
// ones of the CNI specification; Manifold's own start at 100.
type kindInfo struct {
	name string
	code uint
}

var kinds = [kindEnd]kindInfo{
	Other:               {"other", 100},
	InvalidEnvironment:  {"invalid-environment", types.ErrInvalidEnvironmentVariables},
	IO:                  {"io", types.ErrIOFailure},
	Decode:              {"decode", types.ErrDecodingFailure},
	InvalidConfig:       {"invalid-config", types.ErrInvalidNetworkConfig},
	IncompatibleVersion: {"incompatible-version", types.ErrIncompatibleCNIVersion},
	TryAgain:            {"try-again", types.ErrTryAgainLater},
	NotReady:            {"not-ready", codeNotAvailable},
	InvalidAnnotation:   {"invalid-annotation", 101},
	DefinitionMissing:   {"definition-missing", 102},
	InvalidDefinition:   {"invalid-definition", 103},
	Isolation:           {"isolation", 104},
	NoDevice:            {"no-device", 105},
	DeviceConflict:      {"device-conflict", 106},
	DeviceVanished:      {"device-vanished", 107},
	DelegateMissing:     {"delegate-missing", 108},
	DelegateFailed:      {"delegate-failed", 109},
	DelegateTimeout:     {"delegate-timeout", 110},
	VerifyFailed:        {"verify-failed", 111},
	InterfaceConflict:   {"interface-conflict", 112},
	JournalVersion:      {"journal-version", 113},
	JournalCorrupt:      {"journal-corrupt", 114},
	TeardownIncomplete:  {"teardown-incomplete", 115},
	Busy:                {"busy", types.ErrTryAgainLater},
	UnknownContainer:    {"unknown-container", types.ErrUnknownContainer},
	Quarantined:         {"quarantined", 116},
}

// Kinds returns every kind in order, for documentation and tests.
func Kinds() []Kind {
	out := make([]Kind, 0, kindEnd)
	for k := range kindEnd {
		out = append(out, k)
	}
	return out
}

// String returns the documented name of the kind, for example "no-device". A kind that
// this version does not know prints as "other".
func (k Kind) String() string {
	if k < 0 || k >= kindEnd {
		k = Other
	}
	return kinds[k].name
}

// Code returns the CNI error code of the kind.
func (k Kind) Code() uint {
	if k < 0 || k >= kindEnd {
		k = Other
	}
	return kinds[k].code
}

// Subject tells what an error concerns. Unknown fields stay empty.
type Subject struct {
	Pod       string `json:"pod,omitempty"`       // namespace/name
	Network   string `json:"network,omitempty"`   // namespace/name of the definition, or the default network's name
	Interface string `json:"interface,omitempty"` // name in the pod's network namespace
	Resource  string `json:"resource,omitempty"`  // for example vendor.example/vfs
	Device    string `json:"device,omitempty"`    // the device plugin's ID, usually a PCI address
}

// merge fills the empty fields of s from o.
func (s Subject) merge(o Subject) Subject {
	pick := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	return Subject{
		Pod: pick(s.Pod, o.Pod), Network: pick(s.Network, o.Network), Interface: pick(s.Interface, o.Interface),
		Resource: pick(s.Resource, o.Resource), Device: pick(s.Device, o.Device),
	}
}

func (s Subject) String() string {
	var b strings.Builder
	add := func(label, v string) {
		if v == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(label)
		b.WriteByte(' ')
		b.WriteString(v)
	}
	add("pod", s.Pod)
	add("network", s.Network)
	add("interface", s.Interface)
	add("resource", s.Resource)
	add("device", s.Device)
	return b.String()
}

// Error is a failure with its subject, cause and fix.
type Error struct {
	Op   string // what was being done, for example "assign device"
	Kind Kind
	Subject
	Fix string // what the reader should do, a sentence without a full stop; may be empty
	Err error  // cause; may be nil
}

// New returns an Error of the given kind whose cause is the formatted text. %w wraps an
// error as in [fmt.Errorf].
func New(op string, kind Kind, format string, args ...any) *Error {
	return &Error{Op: op, Kind: kind, Err: fmt.Errorf(format, args...)}
}

// WithFix sets the fix and returns e.
func (e *Error) WithFix(format string, args ...any) *Error {
	e.Fix = fmt.Sprintf(format, args...)
	return e
}

// About fills the empty fields of e's subject and returns e.
func (e *Error) About(s Subject) *Error {
	e.Subject = e.Subject.merge(s)
	return e
}

// Error returns "subject: operation: cause; fix", without the parts that are empty.
func (e *Error) Error() string {
	var b strings.Builder
	if s := e.Subject.String(); s != "" {
		b.WriteString(s)
		b.WriteString(": ")
	}
	b.WriteString(e.Op)
	if e.Err != nil {
		if e.Op != "" {
			b.WriteString(": ")
		}
		b.WriteString(e.Err.Error())
	}
	if e.Fix != "" {
		b.WriteString("; ")
		b.WriteString(e.Fix)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// wireError is the JSON form of an Error on the agent's socket.
type wireError struct {
	Op      string `json:"op"`
	Kind    Kind   `json:"kind"`
	Subject        // flattened
	Fix     string `json:"fix,omitempty"`
	Cause   string `json:"cause,omitempty"`
}

// MarshalJSON encodes the error with its cause as text.
func (e *Error) MarshalJSON() ([]byte, error) {
	w := wireError{Op: e.Op, Kind: e.Kind, Subject: e.Subject, Fix: e.Fix}
	if e.Err != nil {
		w.Cause = e.Err.Error()
	}
	return json.Marshal(w)
}

// UnmarshalJSON decodes what [Error.MarshalJSON] wrote. The cause becomes plain text.
func (e *Error) UnmarshalJSON(b []byte) error {
	var w wireError
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*e = Error{Op: w.Op, Kind: w.Kind, Subject: w.Subject, Fix: w.Fix}
	if w.Cause != "" {
		e.Err = errors.New(w.Cause)
	}
	return nil
}

// Annotate adds the subject to err. An *Error is changed in place; any other error is
// wrapped, and keeps the kind of the *Error in its chain. Annotate returns nil for nil.
func Annotate(err error, s Subject) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*Error); ok { //nolint:errorlint // the outermost itself is meant
		return e.About(s)
	}
	return &Error{Kind: KindOf(err), Subject: s, Err: err}
}

// KindOf returns the kind of the outermost *Error in err's chain, or Other if there is
// none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Other
}

// Is reports whether any *Error in err's chain is of kind k.
func Is(err error, k Kind) bool {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return false
		}
		if e.Kind == k {
			return true
		}
		err = e.Err
	}
	return false
}

// ToCNI returns the CNI error object for err. A delegate's own error keeps its code,
// unless its device vanished while it ran; every other error takes the code of its kind.
// A NotReady error always has a code of STATUS: a delegate's code counts only if it is
// one of those. The message is the whole rendered error. ToCNI returns nil for nil.
func ToCNI(err error) *types.Error {
	if err == nil {
		return nil
	}
	kind := KindOf(err)
	code := kind.Code()
	var delegate *types.Error
	if errors.As(err, &delegate) && delegate.Code != 0 && Is(err, DelegateFailed) && kind != DeviceVanished {
		if kind != NotReady || delegate.Code == codeNotAvailable || delegate.Code == codeLimited {
			code = delegate.Code
		}
	}
	return types.NewError(code, err.Error(), "")
}

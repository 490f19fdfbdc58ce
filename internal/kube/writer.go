package kube

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/netattach"
)

const (
	resourceEvents = "events"

	// maxAnnotations is the API server's limit for all annotations of an object
	// together; a longer status cannot succeed.
	maxAnnotations = 256 << 10
	maxMessage     = 1 << 10 // of an Event, in bytes: the limit of the API and the kubelet
	maxReason      = 128     // of an Event, in bytes: the API's limit
	maxEventPrefix = 200     // of an Event's name, leaving room for a suffix in 253

	writeAttempts = 4
	retryDelay    = 100 * time.Millisecond // doubled each time
	maxRetryAfter = 2 * time.Second        // caps the delay that the server suggests

	// eventQuiet is how long a repeated event with the same message is only counted.
	eventQuiet = time.Minute
	// maxEvents is how many events are remembered for aggregation.
	maxEvents = 1024
)

// Writer writes the outcome of a pod's attachments to the API server. It is safe for
// concurrent use.
type Writer struct {
	client    *Client
	component string
	node      string

	mu     sync.Mutex
	events map[eventKey]*eventState
}

// NewWriter returns a writer whose Events name component, for example
// "manifold-agent", and node as their source.
func NewWriter(client *Client, component, node string) *Writer {
	return &Writer{client: client, component: component, node: node, events: map[eventKey]*eventState{}}
}

// statusPatch is a JSON merge patch (RFC 7386): fields that it does not name stay.
type statusPatch struct {
	Metadata statusPatchMeta `json:"metadata"`
}

type statusPatchMeta struct {
	// UID is a precondition, not a change: the API server refuses the patch when the
	// pod has another UID.
	UID         string            `json:"uid,omitempty"`
	Annotations map[string]string `json:"annotations"`
}

// PublishStatus sets the pod's network-status annotation to status, a JSON document,
// with one PATCH that touches nothing else. With a uid, only the pod of that UID is
// changed: if the name belongs to another pod by now, the result is [ErrNotFound].
// Mirror pods are written with an empty uid (see [IsMirror]). Rate limits, server
// errors and timeouts are retried a few times; after that they are [ErrUnavailable].
// Other refusals, such as a missing permission, match neither sentinel.
func (w *Writer) PublishStatus(ctx context.Context, namespace, name, uid, status string) error {
	op := "publish network-status of pod " + namespace + "/" + name
	if err := checkNames("pod", namespace, name); err != nil {
		return fmt.Errorf("publish network-status: %w", err)
	}
	if len(status) > maxAnnotations {
		return fmt.Errorf("%s: %d bytes, at most %d fit in annotations: %w", op, len(status), maxAnnotations, ErrInvalid)
	}
	body, err := json.Marshal(statusPatch{Metadata: statusPatchMeta{
		UID: uid, Annotations: map[string]string{netattach.StatusAnnotation: status},
	}})
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	err = w.client.retry(ctx, func(ctx context.Context) error {
		return w.client.core.Patch(types.MergePatchType).MaxRetries(0).Namespace(namespace).
			Resource(resourcePods).Name(name).Body(body).Do(ctx).Error()
	})
	if uid != "" && (apierrors.IsConflict(err) || apierrors.IsInvalid(err)) {
		// API servers report a UID mismatch in either way, but other problems too. The
		// pod itself tells.
		if pod, getErr := w.client.getPod(ctx, namespace, name); getErr == nil && string(pod.UID) != uid {
			return fmt.Errorf("%s: pod has UID %s, asked for %s: %w: %w", op, pod.UID, uid, ErrNotFound, err)
		} else if errors.Is(getErr, ErrNotFound) {
			return fmt.Errorf("%s: %w", op, getErr)
		}
	}
	return writeError(op, err)
}

// PodRef names the pod that an Event is about.
type PodRef struct {
	Namespace string
	Name      string
	UID       string // the API's, or the kubelet's of a static pod; may be empty
}

// object is the pod as an Event refers to it.
func (r PodRef) object() corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: r.Namespace, Name: r.Name, UID: types.UID(r.UID)}
}

// eventKey identifies one Event object: it stands for everything that is said about one
// object with one type and reason.
type eventKey struct {
	about     corev1.ObjectReference
	eventType string
	reason    string
}

// eventState is the state of a key's Event object. Its mutex is held during a write, so
// that two goroutines never write the same object at once.
type eventState struct {
	mu      sync.Mutex
	name    string // empty until created
	message string
	count   int32
	sent    time.Time
}

// Event reports something about a pod to whoever looks at it with kubectl. eventType is
// corev1.EventTypeNormal or EventTypeWarning, reason is one CamelCase word, and message
// is cut to 1 KiB. All events of one pod, type and reason become one Event object. It
// is created once, then updated with the latest message and a count; an unchanged
// message is written at most once a minute. Errors are as for [Writer.PublishStatus].
func (w *Writer) Event(ctx context.Context, ref PodRef, eventType, reason, message string) error {
	if err := checkNames("pod", ref.Namespace, ref.Name); err != nil {
		return fmt.Errorf("event: %w", err)
	}
	if err := w.emit(ctx, eventKey{ref.object(), eventType, cut(reason, maxReason)}, message); err != nil {
		return writeError(fmt.Sprintf("event %s about pod %s/%s", reason, ref.Namespace, ref.Name), err)
	}
	return nil
}

// NodeEvent is [Writer.Event] for the writer's node.
func (w *Writer) NodeEvent(ctx context.Context, eventType, reason, message string) error {
	// Kubelets refer to their nodes in this way, so kubectl describe finds the Event.
	about := corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: w.node, UID: types.UID(w.node)}
	if err := w.emit(ctx, eventKey{about, eventType, cut(reason, maxReason)}, message); err != nil {
		return writeError(fmt.Sprintf("event %s about node %s", reason, w.node), err)
	}
	return nil
}

// namespace is where the Event object goes: the namespace of the object it is about, or
// "default" for an object without one.
func (k eventKey) namespace() string { return cmp.Or(k.about.Namespace, metav1.NamespaceDefault) }

// emit creates or updates the Event object of key.
func (w *Writer) emit(ctx context.Context, key eventKey, message string) error {
	message = cut(message, maxMessage)
	e := w.event(key)
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	e.count++
	if e.name != "" && e.message == message && now.Sub(e.sent) < eventQuiet {
		return nil
	}
	err := errEventGone
	if e.name != "" {
		err = w.updateEvent(ctx, key.namespace(), e, message, now)
	}
	if errors.Is(err, errEventGone) {
		err = w.createEvent(ctx, key, e, message, now)
	}
	if err != nil {
		return err
	}
	e.message, e.sent = message, now
	return nil
}

// errEventGone: the Event object does not exist. It was never created, or its time to
// live, an hour by default, is over.
var errEventGone = errors.New("no such event")

func (w *Writer) createEvent(ctx context.Context, key eventKey, e *eventState, message string, now time.Time) error {
	at := metav1.NewTime(now)
	event := &corev1.Event{
		// Random, so that a restarted agent does not hit its own old events; the same
		// in every attempt, so that a retry does not create a second one.
		ObjectMeta:     metav1.ObjectMeta{Namespace: key.namespace(), Name: eventName(key.about.Name)},
		InvolvedObject: key.about,
		Type:           key.eventType, Reason: key.reason, Message: message,
		Source:              corev1.EventSource{Component: w.component, Host: w.node},
		ReportingController: w.component, ReportingInstance: w.node,
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
	}
	err := w.client.retry(ctx, func(ctx context.Context) error {
		return w.client.core.Post().MaxRetries(0).Namespace(key.namespace()).
			Resource(resourceEvents).Body(event).Do(ctx).Error()
	})
	if err != nil && !apierrors.IsAlreadyExists(err) { // AlreadyExists means that the answer to an earlier attempt was lost
		return err
	}
	e.name, e.count = event.Name, 1
	return nil
}

// eventPatch is a JSON merge patch of an Event.
type eventPatch struct {
	Count         int32       `json:"count"`
	LastTimestamp metav1.Time `json:"lastTimestamp"`
	Message       string      `json:"message"`
}

func (w *Writer) updateEvent(ctx context.Context, namespace string, e *eventState, message string, now time.Time) error {
	body, err := json.Marshal(eventPatch{Count: e.count, LastTimestamp: metav1.NewTime(now), Message: message})
	if err != nil {
		return err
	}
	err = w.client.retry(ctx, func(ctx context.Context) error {
		return w.client.core.Patch(types.MergePatchType).MaxRetries(0).Namespace(namespace).
			Resource(resourceEvents).Name(e.name).Body(body).Do(ctx).Error()
	})
	if apierrors.IsNotFound(err) {
		return errEventGone
	}
	return err
}

// event returns the state of key. When there are too many, it forgets the event that
// was silent longest.
func (w *Writer) event(key eventKey) *eventState {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e, ok := w.events[key]; ok {
		return e
	}
	if len(w.events) >= maxEvents {
		w.forgetOldest()
	}
	e := &eventState{}
	w.events[key] = e
	return e
}

func (w *Writer) forgetOldest() {
	var oldest eventKey
	var at time.Time
	for k, e := range w.events {
		if !e.mu.TryLock() {
			continue // being written now
		}
		if at.IsZero() || e.sent.Before(at) {
			oldest, at = k, e.sent
		}
		e.mu.Unlock()
	}
	delete(w.events, oldest)
}

// eventName returns a new name that starts with the pod's, as other components' events
// do.
func eventName(pod string) string {
	if len(pod) > maxEventPrefix {
		pod = strings.TrimRight(pod[:maxEventPrefix], "-.")
	}
	return pod + "." + strings.ToLower(rand.Text())
}

// cut shortens s to at most limit bytes of valid UTF-8 and marks the cut.
func cut(s string, limit int) string {
	const mark = "…"
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= limit {
		return s
	}
	end := limit - len(mark)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + mark
}

// retry calls send until it succeeds, fails for good, or has failed writeAttempts
// times. Each call gets twice the timeout of the one before: a server that takes
// seconds to answer is slow, not gone.
func (c *Client) retry(ctx context.Context, send func(context.Context) error) error {
	for attempt := 0; ; attempt++ {
		err := c.attempt(ctx, c.timeout<<attempt, send)
		if err == nil || !retryable(err) || attempt+1 >= writeAttempts {
			return err
		}
		delay := retryDelay << attempt
		if s, ok := apierrors.SuggestsClientDelay(err); ok {
			delay = min(max(delay, time.Duration(s)*time.Second), maxRetryAfter)
		}
		// Half of the delay is random, so that nodes that failed together do not retry
		// together.
		if !sleep(ctx, delay/2+mathrand.N(delay/2)) {
			return err
		}
	}
}

func (c *Client) attempt(ctx context.Context, timeout time.Duration, send func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return send(ctx)
}

// retryable reports whether the same request may succeed later: the server was not
// reached, is too busy, or failed.
func retryable(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true
	}
	code := cmp.Or(status.Status().Code, 500)
	return code == 429 || code >= 500
}

// writeError puts the failure of a write under one of the package's sentinels.
func writeError(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s: %w", op, &apiError{ErrNotFound, err})
	case retryable(err), apierrors.IsConflict(err): // somebody else wrote at the same time
		return fmt.Errorf("%s: %w", op, &apiError{ErrUnavailable, err})
	default:
		return fmt.Errorf("%s: %w", op, err)
	}
}

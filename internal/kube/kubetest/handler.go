package kubetest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

const (
	maxBody = 3 << 20 // the real server's limit

	mergePatch = "application/merge-patch+json"
)

// target is what the path of a request names.
type target struct {
	resource  string
	namespace string // empty: all
	name      string // empty: the collection
}

// serve records the request and answers it, or fails as [Server.FailWith],
// [Server.FailNext] or [Server.Pause] demand.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	rec := &Request{
		Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery,
		ContentType: r.Header.Get("Content-Type"), UserAgent: r.UserAgent(), Body: string(body),
	}
	out := &recorder{ResponseWriter: w, server: s, request: rec}
	s.mu.Lock()
	s.requests = append(s.requests, rec)
	paused, fail := s.paused, s.nextFailure()
	s.mu.Unlock()
	if paused != nil {
		select {
		case <-paused:
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case err != nil:
		out.status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error(), nil)
	case len(body) > maxBody:
		out.status(http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge, "body too large", nil)
	case fail != 0:
		var details *metav1.StatusDetails
		if fail == http.StatusTooManyRequests {
			out.Header().Set("Retry-After", "1") // as the real server says it, twice
			details = &metav1.StatusDetails{RetryAfterSeconds: 1}
		}
		out.status(fail, failureReason(fail), "failing as told", details)
	default:
		s.route(out, r, body)
	}
}

// nextFailure returns the code to fail the present request with, or 0. The caller holds
// s.mu.
func (s *Server) nextFailure() int {
	if len(s.failNext) > 0 {
		code := s.failNext[0]
		s.failNext = s.failNext[1:]
		return code
	}
	return s.failAll
}

func failureReason(code int) metav1.StatusReason {
	switch code {
	case http.StatusUnauthorized:
		return metav1.StatusReasonUnauthorized
	case http.StatusForbidden:
		return metav1.StatusReasonForbidden
	case http.StatusNotFound:
		return metav1.StatusReasonNotFound
	case http.StatusConflict:
		return metav1.StatusReasonConflict
	case http.StatusUnprocessableEntity:
		return metav1.StatusReasonInvalid
	case http.StatusTooManyRequests:
		return metav1.StatusReasonTooManyRequests
	case http.StatusServiceUnavailable:
		return metav1.StatusReasonServiceUnavailable
	case http.StatusGatewayTimeout:
		return metav1.StatusReasonTimeout
	default:
		return metav1.StatusReasonInternalError
	}
}

func (s *Server) route(w *recorder, r *http.Request, body []byte) {
	t, ok := parsePath(r.URL.Path)
	if !ok {
		http.Error(w, "404 page not found", http.StatusNotFound)
		return
	}
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodGet && t.name != "":
		s.get(w, t)
	case r.Method == http.MethodGet && s.mayNotFollow(t.resource):
		w.status(http.StatusForbidden, metav1.StatusReasonForbidden, t.resource+" may not be listed or watched", nil)
	case r.Method == http.MethodGet && q.Get("watch") == "true":
		s.watch(r.Context(), w, t, q)
	case r.Method == http.MethodGet:
		s.list(w, t, q)
	case r.Method == http.MethodPost && t.name == "" && t.namespace != "":
		s.create(w, t, body)
	case r.Method == http.MethodPatch && t.name != "":
		s.patch(w, t, r.Header.Get("Content-Type"), body)
	default:
		w.status(http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, r.Method+" "+r.URL.Path, nil)
	}
}

func (s *Server) mayNotFollow(resource string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.noFollow == resource
}

// parsePath understands <prefix>/<resource> and
// <prefix>/namespaces/<namespace>/<resource>[/<name>].
func parsePath(path string) (target, bool) {
	var t target
	rest, core := strings.CutPrefix(path, "/api/")
	if !core {
		rest = strings.TrimPrefix(path, "/apis/")
	}
	parts := strings.Split(rest, "/")
	version := strings.Join(parts[:min(len(parts), groupParts(core))], "/")
	if parts = parts[min(len(parts), groupParts(core)):]; len(parts) == 0 {
		return target{}, false
	}
	if parts[0] == "namespaces" && len(parts) >= 3 {
		t.namespace, parts = parts[1], parts[2:]
	}
	t.resource = parts[0]
	if len(parts) == 2 && t.namespace != "" {
		t.name = parts[1]
	} else if len(parts) > 1 {
		return target{}, false
	}
	kind, known := kinds[t.resource]
	return t, known && kind.APIVersion == version
}

// groupParts returns how many parts of a path name its API group and version.
func groupParts(core bool) int {
	if core {
		return 1
	}
	return 2
}

func (s *Server) get(w *recorder, t target) {
	s.mu.Lock()
	obj, ok := s.objects[t.resource][t.namespace+"/"+t.name]
	s.mu.Unlock()
	if !ok {
		w.notFound(t)
		return
	}
	w.json(http.StatusOK, obj)
}

func (s *Server) list(w *recorder, t target, q url.Values) {
	selector, err := fields.ParseSelector(q.Get("fieldSelector"))
	if err != nil {
		w.status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error(), nil)
		return
	}
	s.mu.Lock()
	items := s.selected(t, selector)
	version := s.version
	s.mu.Unlock()
	kind := kinds[t.resource]
	w.json(http.StatusOK, object{
		"apiVersion": kind.APIVersion, "kind": kind.Kind + "List",
		"metadata": object{"resourceVersion": strconv.FormatInt(version, 10)}, "items": items,
	})
}

// selected returns the objects of a collection, by name. The caller holds s.mu.
func (s *Server) selected(t target, selector fields.Selector) []object {
	items := []object{}
	for _, key := range sortedKeys(s.objects[t.resource]) {
		if obj := s.objects[t.resource][key]; t.selects(obj, selector) {
			items = append(items, obj)
		}
	}
	return items
}

func (t target) selects(obj object, selector fields.Selector) bool {
	if obj == nil {
		return false
	}
	meta := child(obj, "metadata")
	if t.namespace != "" && text(meta, "namespace") != t.namespace {
		return false
	}
	spec, _ := obj["spec"].(object)
	return selector.Matches(fields.Set{
		"metadata.name": text(meta, "name"), "metadata.namespace": text(meta, "namespace"),
		"spec.nodeName": text(spec, "nodeName"),
	})
}

func (s *Server) create(w *recorder, t target, body []byte) {
	var obj object
	if err := json.Unmarshal(body, &obj); err != nil {
		w.status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error(), nil)
		return
	}
	meta := child(obj, "metadata")
	if ns := text(meta, "namespace"); ns != "" && ns != t.namespace || text(meta, "name") == "" {
		w.status(http.StatusBadRequest, metav1.StatusReasonBadRequest, "namespace or name of the object does not fit the request", nil)
		return
	}
	meta["namespace"] = t.namespace
	s.mu.Lock()
	_, exists := s.objects[t.resource][objectKey(obj)]
	if !exists {
		s.store(t.resource, obj)
	}
	s.mu.Unlock()
	if exists {
		w.status(http.StatusConflict, metav1.StatusReasonAlreadyExists, fmt.Sprintf("%s %q already exists", t.resource, text(meta, "name")), nil)
		return
	}
	w.json(http.StatusCreated, obj)
}

func (s *Server) patch(w *recorder, t target, contentType string, body []byte) {
	if contentType != mergePatch {
		w.status(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType, contentType+" is not served", nil)
		return
	}
	var patch object
	if err := json.Unmarshal(body, &patch); err != nil {
		w.status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error(), nil)
		return
	}
	s.mu.Lock()
	obj, ok := s.objects[t.resource][t.namespace+"/"+t.name]
	have := text(child(orEmpty(obj), "metadata"), "uid")
	want := text(child(patch, "metadata"), "uid")
	mismatch := want != "" && want != have
	if ok && !mismatch {
		obj = merge(obj, patch)
		s.store(t.resource, obj)
	}
	s.mu.Unlock()
	switch {
	case !ok:
		w.notFound(t)
	case mismatch:
		w.status(http.StatusConflict, metav1.StatusReasonConflict,
			fmt.Sprintf("Precondition failed: UID in precondition: %s, UID in object meta: %s", want, have), nil)
	default:
		w.json(http.StatusOK, obj)
	}
}

func orEmpty(obj object) object {
	if obj == nil {
		return object{}
	}
	return obj
}

// merge applies a JSON merge patch (RFC 7386) to a copy of doc.
func merge(doc, patch object) object {
	out := maps.Clone(orEmpty(doc))
	for k, v := range patch {
		switch p := v.(type) {
		case nil:
			delete(out, k)
		case object:
			old, _ := out[k].(object)
			out[k] = merge(old, p)
		default:
			out[k] = v
		}
	}
	return out
}

// watch streams changes as JSON objects until the request or all watches end.
func (s *Server) watch(ctx context.Context, w *recorder, t target, q url.Values) {
	selector, err := fields.ParseSelector(q.Get("fieldSelector"))
	if err != nil {
		w.status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error(), nil)
		return
	}
	stream := q.Get("sendInitialEvents") == "true"
	from, err := strconv.ParseInt(q.Get("resourceVersion"), 10, 64)
	if err != nil && q.Get("resourceVersion") != "" {
		w.status(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error(), nil)
		return
	}
	s.mu.Lock()
	refused, expired, cut := stream && s.noStream, !stream && from < s.oldest, s.cut
	var initial []object
	if stream {
		initial, from = s.selected(t, selector), s.version
	}
	s.mu.Unlock()
	if refused {
		w.status(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, "sendInitialEvents is forbidden for watch", nil)
		return
	}
	w.stream()
	if expired {
		w.event("ERROR", statusObject(http.StatusGone, metav1.StatusReasonExpired, "too old resource version", nil))
		return
	}
	for _, obj := range initial {
		w.event("ADDED", obj)
	}
	if stream {
		w.event("BOOKMARK", bookmark(t.resource, from))
	}
	s.follow(ctx, w, t, selector, from, cut)
}

// bookmark marks the end of a streamed list.
func bookmark(resource string, version int64) object {
	return object{
		"apiVersion": kinds[resource].APIVersion, "kind": kinds[resource].Kind,
		"metadata": object{
			"resourceVersion": strconv.FormatInt(version, 10),
			"annotations":     object{metav1.InitialEventsAnnotationKey: "true"},
		},
	}
}

func (s *Server) follow(ctx context.Context, w *recorder, t target, selector fields.Selector, from int64, cut <-chan struct{}) {
	for {
		s.mu.Lock()
		var news []change
		for _, c := range s.history {
			if c.version > from && c.resource == t.resource {
				news = append(news, c)
			}
		}
		changed, paused := s.changed, s.paused
		s.mu.Unlock()
		if paused != nil {
			news, changed = nil, paused // silent until resumed
		}
		for _, c := range news {
			from = c.version
			w.change(c, t, selector)
		}
		select {
		case <-changed:
		case <-cut:
			return
		case <-ctx.Done():
			return
		}
	}
}

// change sends what a change means to a watch: an object that no longer matches the
// selector counts as deleted.
func (w *recorder) change(c change, t target, selector fields.Selector) {
	was, is := t.selects(c.was, selector), t.selects(c.is, selector)
	switch {
	case was && is:
		w.event("MODIFIED", c.is)
	case is:
		w.event("ADDED", c.is)
	case was:
		gone := merge(c.was, object{"metadata": object{"resourceVersion": strconv.FormatInt(c.version, 10)}})
		w.event("DELETED", gone)
	}
}

// recorder is a response that records its code in the list of requests.
type recorder struct {
	http.ResponseWriter
	server  *Server
	request *Request
}

// WriteHeader implements [http.ResponseWriter].
func (w *recorder) WriteHeader(code int) {
	w.server.mu.Lock()
	w.request.Code = code
	w.server.mu.Unlock()
	w.ResponseWriter.WriteHeader(code)
}

// json answers with v. Writing fails only when the client is gone.
func (w *recorder) json(code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func (w *recorder) stream() {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	w.flush()
}

func (w *recorder) event(kind string, obj any) {
	_ = json.NewEncoder(w).Encode(object{"type": kind, "object": obj})
	w.flush()
}

func (w *recorder) flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func (w *recorder) notFound(t target) {
	w.status(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", t.resource, t.name),
		&metav1.StatusDetails{Name: t.name, Kind: t.resource})
}

func (w *recorder) status(code int, reason metav1.StatusReason, message string, details *metav1.StatusDetails) {
	w.json(code, statusObject(code, reason, message, details))
}

func statusObject(code int, reason metav1.StatusReason, message string, details *metav1.StatusDetails) metav1.Status {
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message, Details: details,
	}
}

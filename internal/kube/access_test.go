package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/rest"
)

// reviewer is an API server that answers reviews: tokens are "USER for AUDIENCE", and
// the user "viewer" may get /yes.
type reviewer struct {
	tokens, accesses atomic.Int32
	down             atomic.Bool
}

func (s *reviewer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // the client is in this process
	}
	switch {
	case s.down.Load():
		http.Error(w, "down", http.StatusServiceUnavailable)
	case strings.HasSuffix(r.URL.Path, "/tokenreviews"):
		s.tokens.Add(1)
		var t authenticationv1.TokenReview
		if json.NewDecoder(r.Body).Decode(&t) != nil || len(t.Spec.Audiences) != 1 {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		user, audience, ok := strings.Cut(t.Spec.Token, " for ")
		if ok && (audience == t.Spec.Audiences[0] || audience == "any") {
			t.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: user}, Audiences: []string{audience}}
		}
		answer(t)
	case strings.HasSuffix(r.URL.Path, "/subjectaccessreviews"):
		s.accesses.Add(1)
		var a authorizationv1.SubjectAccessReview
		if json.NewDecoder(r.Body).Decode(&a) != nil {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		a.Status.Allowed = a.Spec.User == "viewer" && a.Spec.NonResourceAttributes.Path == "/yes" && a.Spec.NonResourceAttributes.Verb == "get"
		answer(a)
	}
}

func newAccess(t *testing.T) (*reviewer, *Access) {
	t.Helper()
	s := &reviewer{}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	client, err := NewClient(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return s, NewAccess(client, "node1")
}

func TestAccess(t *testing.T) {
	s, a := newAccess(t)
	for _, c := range []struct {
		token, path string
		want        error
	}{
		{"viewer for node1", "/yes", nil},
		{"viewer for node1", "/no", ErrForbidden},
		{"other for node1", "/yes", ErrForbidden},
		{"viewer for node2", "/yes", ErrUnauthenticated},
		{"viewer for any", "/yes", ErrUnauthenticated}, // an API server that ignores the audience
		{"stranger", "/yes", ErrUnauthenticated},
		{"", "/yes", ErrUnauthenticated},
		{strings.Repeat("x", maxToken+1), "/yes", ErrUnauthenticated},
	} {
		for range 2 {
			if err := a.Allowed(t.Context(), c.token, c.path); !errors.Is(err, c.want) {
				t.Errorf("%.20s %s: %v, want %v", c.token, c.path, err, c.want)
			}
		}
	}
	if tokens, accesses := s.tokens.Load(), s.accesses.Load(); tokens != 6 || accesses != 3 {
		t.Errorf("%d and %d reviews: the second answer is the first one's", tokens, accesses)
	}
}

func TestAccessWithoutTheAPIServer(t *testing.T) {
	s, a := newAccess(t)
	s.down.Store(true)
	if err := a.Allowed(t.Context(), "viewer for node1", "/yes"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
	s.down.Store(false)
	if err := a.Allowed(t.Context(), "viewer for node1", "/yes"); err != nil {
		t.Errorf("an outage is not remembered: %v", err)
	}
	for range maxReviews {
		a.reviews <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Allowed(ctx, "viewer for node1", "/other"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("with all reviews under way: %v", err)
	}
}

// A flood of tokens must not fill the agent's memory.
func TestAccessForgets(t *testing.T) {
	_, a := newAccess(t)
	for i := range maxVerdicts + 10 {
		a.keep(verdictKey{path: fmt.Sprint(i)}, nil)
	}
	if n := len(a.verdicts); n > maxVerdicts {
		t.Errorf("%d verdicts are kept", n)
	}
}

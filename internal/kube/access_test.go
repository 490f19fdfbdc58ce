package kube

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
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

// token returns a token of a user for an audience.
func token(user, audience string) string {
	return signed(fmt.Sprintf(`{"sub":%q,"aud":[%q]}`, user, audience))
}

// signed returns a token with a payload.
func signed(payload string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"none"}`)) + "." + encode([]byte(payload)) + "." + encode([]byte("signature"))
}

// reviewer is an API server that answers reviews: it knows the users "viewer" and
// "other", and "lax" without regard to the audience; "viewer" may get /yes.
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
		var claims struct{ Sub string }
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(t.Spec.Token, ".")[1])
		if err != nil || json.Unmarshal(payload, &claims) != nil {
			http.Error(w, "bad", http.StatusBadRequest)
			return
		}
		t.Status = authenticationv1.TokenReviewStatus{Authenticated: claims.Sub != "stranger", User: authenticationv1.UserInfo{Username: claims.Sub}}
		if claims.Sub != "lax" {
			t.Status.Audiences = t.Spec.Audiences
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
		{token("viewer", "node1"), "/yes", nil},
		{token("viewer", "node1"), "/no", ErrForbidden},
		{token("other", "node1"), "/yes", ErrForbidden},
		{token("lax", "node1"), "/yes", ErrUnauthenticated}, // an API server that ignores the audience
		{token("stranger", "node1"), "/yes", ErrUnauthenticated},
		{token("stranger", "node1"), "/no", ErrUnauthenticated}, // is the same stranger
		{token("viewer", "node2"), "/yes", ErrUnauthenticated},  // and all that follow are not asked about
		{"", "/yes", ErrUnauthenticated},
		{strings.Repeat("x", maxToken+1), "/yes", ErrUnauthenticated},
	} {
		for range 2 {
			if err := a.Allowed(t.Context(), c.token, c.path); !errors.Is(err, c.want) {
				t.Errorf("%.20s %s: %v, want %v", c.token, c.path, err, c.want)
			}
		}
	}
	if tokens, accesses := s.tokens.Load(), s.accesses.Load(); tokens != 5 || accesses != 3 {
		t.Errorf("%d and %d reviews: the second answer is the first one's", tokens, accesses)
	}
}

func TestAccessWithoutTheAPIServer(t *testing.T) {
	s, a := newAccess(t)
	s.down.Store(true)
	if err := a.Allowed(t.Context(), token("viewer", "node1"), "/yes"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
	s.down.Store(false)
	if err := a.Allowed(t.Context(), token("viewer", "node1"), "/yes"); err != nil {
		t.Errorf("an outage is not remembered: %v", err)
	}
	for range maxReviews {
		a.reviews <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Allowed(ctx, token("viewer", "node1"), "/other"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("with all reviews under way: %v", err)
	}
}

// TestAddressed tells the tokens that can be a service account's for an audience from
// those that the API server need not see.
func TestAddressed(t *testing.T) {
	good := token("viewer", "node1")
	for _, tc := range []struct {
		token string
		want  bool
	}{
		{good, true},
		{signed(`{"aud":"node1"}`), true},
		{signed(`{"aud":["api","node1"]}`), true},
		{signed(`{"aud":["node2"]}`), false},
		{signed(`{"aud":["node"]}`), false},
		{signed(`{"aud":[["node1"]]}`), false},
		{signed(`{"aud":{"node1":1}}`), false},
		{signed(`{}`), false},
		{signed(`"node1"`), false},
		{signed(`{"aud":["node1"]`), false},
		{good + ".", false},
		{strings.TrimRight(good, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"), false},
		{"." + strings.SplitN(good, ".", 2)[1], false},
		{good + "=", false},
		{"node1", false},
		{"..", false},
		{"", false},
	} {
		if got := addressed(tc.token, "node1"); got != tc.want {
			t.Errorf("%s: %t", tc.token, got)
		}
	}
}

// TestAccessForgets proves that a flood of tokens fills neither the agent's memory nor
// the place of users' verdicts.
func TestAccessForgets(t *testing.T) {
	_, a := newAccess(t)
	user := verdictKey{path: "user"}
	a.keep(user, nil)
	for i := range maxStrangers + 10 {
		a.keep(verdictKey{token: sha256.Sum256(fmt.Append(nil, i))}, ErrUnauthenticated)
	}
	if n := len(a.strangers); n > maxStrangers {
		t.Errorf("%d strangers are kept", n)
	}
	if _, ok := a.known(user); !ok {
		t.Error("strangers displace a user")
	}
	for i := range maxVerdicts + 10 {
		a.keep(verdictKey{path: fmt.Sprint(i)}, nil)
	}
	if n := len(a.verdicts); n > maxVerdicts {
		t.Errorf("%d verdicts are kept", n)
	}
}

package kube

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// ErrUnauthenticated says that the API server does not know a token, or that the token
// was issued for another audience.
var ErrUnauthenticated = errors.New("not authenticated")

// ErrForbidden says that the owner of a token lacks the permission that is asked about.
var ErrForbidden = errors.New("forbidden")

// Bounds of Access: they limit what strangers can make an agent ask of the API server.
const (
	maxToken     = 16 << 10 // bytes
	maxVerdicts  = 256
	maxStrangers = 1000
	maxReviews   = 4 // at the same time
	allowedTime  = time.Minute
	refusedTime  = 10 * time.Second
)

// Access asks the API server who owns a token (TokenReview) and whether the owner
// may read a path (SubjectAccessReview). Answers are kept for a short time, and a token
// that is not even addressed to the audience is refused without asking. Only tokens that
// were made up well cost a review each, of which few run at a time. Access is safe for
// concurrent use.
type Access struct {
	client   *Client
	audience string
	reviews  chan struct{} // holds a token for each review under way

	mu        sync.Mutex
	verdicts  map[verdictKey]verdict // about users
	strangers map[verdictKey]verdict // about tokens of nobody, for every path; apart, so that they do not displace users
}

type verdictKey struct {
	token [sha256.Size]byte
	path  string
}

type verdict struct {
	err   error
	until time.Time
}

// NewAccess returns an Access for tokens that were issued for audience.
func NewAccess(client *Client, audience string) *Access {
	return &Access{client: client, audience: audience, reviews: make(chan struct{}, maxReviews), verdicts: map[verdictKey]verdict{}, strangers: map[verdictKey]verdict{}}
}

// Allowed returns nil when the owner of token may get path, an absolute path that RBAC
// knows as a nonResourceURL. Its errors are [ErrUnauthenticated], [ErrForbidden], and
// [ErrUnavailable] when the API server does not answer.
func (a *Access) Allowed(ctx context.Context, token, path string) error {
	if token == "" || len(token) > maxToken {
		return fmt.Errorf("%w: no token", ErrUnauthenticated)
	}
	if !addressed(token, a.audience) {
		return fmt.Errorf("%w: the token is not one of a service account for %s", ErrUnauthenticated, a.audience)
	}
	key := verdictKey{sha256.Sum256([]byte(token)), path}
	if v, ok := a.known(key); ok {
		return v.err
	}
	select {
	case a.reviews <- struct{}{}:
		defer func() { <-a.reviews }()
	case <-ctx.Done():
		return fmt.Errorf("%w: too many tokens are being reviewed: %w", ErrUnavailable, ctx.Err())
	}
	if v, ok := a.known(key); ok { // reviewed while this request waited
		return v.err
	}
	err := a.review(ctx, token, path)
	if !errors.Is(err, ErrUnavailable) {
		a.keep(key, err)
	}
	return err
}

// addressed reports whether a token has the form of a service account's, a signed JSON
// Web Token (RFC 7519), and names the audience. Whether it is genuine only the API server
// can tell.
func addressed(token, audience string) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	var decoded [3][]byte
	for i, p := range parts {
		var err error
		if decoded[i], err = base64.RawURLEncoding.DecodeString(p); err != nil || len(decoded[i]) == 0 {
			return false
		}
	}
	var claims struct {
		Audience any `json:"aud"` // a string or a list of strings
	}
	if json.Unmarshal(decoded[1], &claims) != nil {
		return false
	}
	list, _ := claims.Audience.([]any)
	return claims.Audience == any(audience) || slices.Contains(list, any(audience))
}

// known returns a recent answer.
func (a *Access) known(key verdictKey) (verdict, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v, ok := a.verdicts[key]
	if !ok {
		v, ok = a.strangers[verdictKey{token: key.token}]
	}
	return v, ok && time.Now().Before(v.until)
}

// keep remembers an answer. When there are too many, it forgets them all: a flood of
// tokens costs reviews, never memory.
func (a *Access) keep(key verdictKey, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	kept, most, life := a.verdicts, maxVerdicts, allowedTime
	if err != nil {
		life = refusedTime
	}
	if errors.Is(err, ErrUnauthenticated) {
		kept, most, key.path = a.strangers, maxStrangers, ""
	}
	if len(kept) >= most {
		clear(kept)
	}
	kept[key] = verdict{err, time.Now().Add(life)}
}

// review asks the API server.
func (a *Access) review(ctx context.Context, token, path string) error {
	who := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{a.audience}}}
	if err := a.client.post(ctx, a.client.authentication, "tokenreviews", who); err != nil {
		return err
	}
	// An API server that knows no audiences answers without any.
	if !who.Status.Authenticated || !slices.Contains(who.Status.Audiences, a.audience) {
		return fmt.Errorf("%w: the API server does not know the token, or it is not for %s", ErrUnauthenticated, a.audience)
	}
	user := who.Status.User
	may := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: map[string]authorizationv1.ExtraValue{},
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: "get"},
	}}
	for k, v := range user.Extra {
		may.Spec.Extra[k] = authorizationv1.ExtraValue(v)
	}
	if err := a.client.post(ctx, a.client.authorization, "subjectaccessreviews", may); err != nil {
		return err
	}
	if !may.Status.Allowed {
		return fmt.Errorf("%w: %s may not get %s", ErrForbidden, user.Username, path)
	}
	return nil
}

// addAuthentication registers TokenReview.
func addAuthentication(s *runtime.Scheme) error {
	s.AddKnownTypes(authenticationv1.SchemeGroupVersion, &authenticationv1.TokenReview{})
	metav1.AddToGroupVersion(s, authenticationv1.SchemeGroupVersion)
	return nil
}

// addAuthorization registers SubjectAccessReview.
func addAuthorization(s *runtime.Scheme) error {
	s.AddKnownTypes(authorizationv1.SchemeGroupVersion, &authorizationv1.SubjectAccessReview{})
	metav1.AddToGroupVersion(s, authorizationv1.SchemeGroupVersion)
	return nil
}

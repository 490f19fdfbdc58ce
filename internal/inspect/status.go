package inspect

import (
	"slices"
	"strings"

	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Select returns the attachments for which wanted is true, in their order.
func Select(all []nodeview.Attachment, wanted func(*nodeview.Attachment) bool) []nodeview.Attachment {
	var out []nodeview.Attachment
	for i := range all {
		if wanted(&all[i]) {
			out = append(out, all[i])
		}
	}
	return out
}

// Verdict returns what is known of an attachment's health, in words. good is false when
// somebody should look at it.
func Verdict(a *nodeview.Attachment) (text string, good bool) {
	if text := leftover(a); text != "" {
		return text, false
	}
	switch {
	case a.State != nodeview.StateAttached:
		return a.State, true
	case a.VerifyMode == plan.VerifyOff:
		return "off", true
	case a.VerifiedAt == nil:
		return "not yet", true
	case len(a.Differs) > 0:
		return "no: " + strings.Join(a.Differs, "; "), false
	case len(a.Verified) == 0:
		return "nothing to compare", true
	}
	return "yes", true
}

// leftover tells why an attachment counts as left behind; empty if it does not.
func leftover(a *nodeview.Attachment) string {
	switch {
	case a.Gone != "":
		return "gone: " + a.Gone + ", and its DEL has not come"
	case a.State == nodeview.StateReleaseFailed:
		return a.State + ": " + a.Error
	}
	return ""
}

// AnyWrong reports whether the verdict on any attachment is not good.
func AnyWrong(all []nodeview.Attachment) bool {
	return slices.ContainsFunc(all, func(a nodeview.Attachment) bool {
		_, good := Verdict(&a)
		return !good
	})
}

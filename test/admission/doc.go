// Package admission tests the admission webhook with a real API server: the chart
// is installed by the real Helm, the webhook runs with the arguments and the
// permissions that the chart gives it, and the API server calls it by its Service.
// The tests have the tag apiserver.
package admission

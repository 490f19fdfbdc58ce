// Package admission tests the admission webhook with a real API server: the real
// Helm installs the chart, the webhook runs with the chart's arguments and
// permissions, and the API server calls it through its Service. The tests have the
// build tag apiserver.
package admission

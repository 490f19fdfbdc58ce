// Package prometheus pins the promtool that tests check rules and queries with.
package prometheus

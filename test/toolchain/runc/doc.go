// Package runc pins the runtime of containers that tests build for a real node.
package runc

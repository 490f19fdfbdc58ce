// Package etcd pins the etcd that tests build for a real API server.
package etcd

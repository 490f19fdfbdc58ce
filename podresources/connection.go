package podresources

import (
	"errors"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// connection is the one gRPC connection to a socket of the kubelet. It connects at the
// first call, and again whenever the kubelet has restarted. It is safe for concurrent
// use.
type connection struct {
	socket string
	once   sync.Once
	conn   *grpc.ClientConn
	err    error
}

// get returns the connection, or [ErrUnavailable] if close came before the first call.
func (c *connection) get() (*grpc.ClientConn, error) {
	c.once.Do(func() {
		c.conn, c.err = grpc.NewClient("unix://"+c.socket,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: callTime, Backoff: quickBackoff}))
	})
	if c.err != nil {
		return nil, &failure{ErrUnavailable, c.err}
	}
	return c.conn, nil
}

// close closes the connection, if there was one.
func (c *connection) close() error {
	c.once.Do(func() { c.err = errors.New("the connection is closed") })
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}

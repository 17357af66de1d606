package kafka

import (
	"context"
	"net"
	"sync"
)

// gate is the broker's listener. Until open is called it lets in only
// connections of this process (dial); others wait in the kernel's queue.
type gate struct {
	net.Listener
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newGate(l net.Listener) *gate {
	return &gate{Listener: l, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (g *gate) Accept() (net.Conn, error) {
	select {
	case c := <-g.conns:
		return c, nil
	case <-g.closed:
		return nil, net.ErrClosed
	}
}

func (g *gate) Close() error {
	var err error
	g.once.Do(func() {
		close(g.closed)
		err = g.Listener.Close()
	})
	return err
}

// dial connects within the process, whatever the address.
func (g *gate) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	if err := g.pass(ctx, server); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// open lets everybody in.
func (g *gate) open() {
	go func() {
		for {
			c, err := g.Listener.Accept()
			if err != nil {
				return // closed; the broker hears of it through Accept
			}
			if g.pass(context.Background(), c) != nil {
				return
			}
		}
	}()
}

func (g *gate) pass(ctx context.Context, c net.Conn) error {
	select {
	case g.conns <- c:
		return nil
	case <-g.closed:
		c.Close()
		return net.ErrClosed
	case <-ctx.Done():
		c.Close()
		return ctx.Err()
	}
}

package process

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports that the kernel gives to outgoing connections begin at 32768. What is
// killed and started again must find its port free, so it takes a lower one.
const lowestPort, highestPort = 15000, 32000

// FreeAddrs returns addresses on loopback on which nobody listens.
func FreeAddrs(n int) ([]string, error) {
	var out []string
	taken := map[int]bool{}
	for tries := 0; len(out) < n; tries++ {
		if tries > 100*n {
			return nil, fmt.Errorf("looking for %d free ports between %d and %d: found %d", n, lowestPort, highestPort, len(out))
		}
		port := lowestPort + rand.IntN(highestPort-lowestPort)
		if taken[port] {
			continue
		}
		taken[port] = true
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		out = append(out, l.Addr().String())
		l.Close()
	}
	return out, nil
}

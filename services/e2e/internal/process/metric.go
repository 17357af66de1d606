package process

import (
	"bufio"
	"context"
	"net/http"
	"strconv"
	"strings"
)

// Metric is what a service says of itself at its TELEMETRY_ADDR: the number behind a
// name, labels included. It is 0 if the service does not say.
func Metric(ctx context.Context, client *http.Client, addr, name string) float64 {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/metrics", nil)
	if err != nil {
		return 0
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, _ := strconv.ParseFloat(value, 64)
			return n
		}
	}
	return 0
}

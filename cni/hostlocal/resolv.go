package hostlocal

import (
	"bufio"
	"io"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// maxResolvConf bounds the resolver configuration that is read.
const maxResolvConf = 64 << 10

func readResolvConf(path string) (types.DNS, error) {
	f, err := os.Open(path)
	if err != nil {
		return types.DNS{}, err
	}
	defer f.Close()
	return parseResolvConf(io.LimitReader(f, maxResolvConf))
}

// parseResolvConf reads resolv.conf(5).
func parseResolvConf(r io.Reader) (types.DNS, error) {
	var dns types.DNS
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := lines.Text()
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, fields[1])
		case "domain":
			dns.Domain = fields[1]
		case "search":
			dns.Search = fields[1:]
		case "options":
			dns.Options = append(dns.Options, fields[1:]...)
		}
	}
	return dns, lines.Err()
}

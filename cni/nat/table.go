package nat

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// layout is the table and its maps. A verdict map leads an address to the chain
// of its subnet; a port map leads protocol and port, "At" with a local address
// before them, to an address and port in a pod. It is built when a connection
// is opened: a container's shim never does that.
type layout struct {
	table                              *nftables.Table
	masquerade4, masquerade6           *nftables.Set
	hairpin4, hairpin6                 *nftables.Set
	ports4, ports4At, ports6, ports6At *nftables.Set
}

func newLayout() layout {
	l := layout{table: &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}}
	verdicts := func(name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: l.table, Name: name, IsMap: true, KeyType: key, DataType: nftables.TypeVerdict}
	}
	ports := func(name string, address nftables.SetDatatype, key ...nftables.SetDatatype) *nftables.Set {
		key = append(key, nftables.TypeInetProto, nftables.TypeInetService)
		return &nftables.Set{Table: l.table, Name: name, IsMap: true, Concatenation: true,
			KeyType: nftables.MustConcatSetType(key...), DataType: nftables.MustConcatSetType(address, nftables.TypeInetService)}
	}
	four, six := nftables.TypeIPAddr, nftables.TypeIP6Addr
	l.masquerade4, l.masquerade6 = verdicts("masquerade4", four), verdicts("masquerade6", six)
	l.hairpin4, l.hairpin6 = verdicts("hairpin4", four), verdicts("hairpin6", six)
	l.ports4, l.ports4At = ports("ports4", four), ports("ports4_at", four, four)
	l.ports6, l.ports6At = ports("ports6", six), ports("ports6_at", six, six)
	// Numbers within a batch; the library would take them from a counter that
	// two connections may not use at once.
	for i, m := range append(l.masquerades(), l.forwards()...) {
		m.ID = uint32(i + 1)
	}
	return l
}

func (l *layout) masquerades() []*nftables.Set {
	return []*nftables.Set{l.masquerade4, l.masquerade6}
}

func (l *layout) ports() []*nftables.Set {
	return []*nftables.Set{l.ports4, l.ports4At, l.ports6, l.ports6At}
}

// forwards are what a host port has entries in.
func (l *layout) forwards() []*nftables.Set { return append(l.ports(), l.hairpin4, l.hairpin6) }

// family is where IPv4 and IPv6 differ.
type family struct {
	nfproto             uint8
	length, saddr, dadr uint32 // of an address, and where in the header
	multicast           netip.Prefix
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4()
	}
	return ipv6()
}

func ipv4() family {
	return family{unix.NFPROTO_IPV4, 4, 12, 16, netip.MustParsePrefix("224.0.0.0/4")}
}

func ipv6() family {
	return family{unix.NFPROTO_IPV6, 16, 8, 24, netip.MustParsePrefix("ff00::/8")}
}

func (f family) pick(four, six *nftables.Set) *nftables.Set {
	if f.nfproto == unix.NFPROTO_IPV4 {
		return four
	}
	return six
}

// chainName makes a subnet a word that the nft tool accepts.
func chainName(prefix string, subnet netip.Prefix) string {
	return prefix + strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'f' {
			return r
		}
		return '_'
	}, subnet.String())
}

func masqueradeChain(subnet netip.Prefix) string { return chainName("masquerade_", subnet) }
func hairpinChain(subnet netip.Prefix) string    { return chainName("hairpin_", subnet) }

// Registers: the kernel numbers the four-byte ones from 8, and number 1 begins
// where 8 does.
const (
	reg   = 8
	wideR = 1
)

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func (f family) only() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: wideR},
		&expr.Cmp{Op: expr.CmpOpEq, Register: wideR, Data: []byte{f.nfproto}},
	}
}

func (f family) load(register, offset uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.length}}
}

// in compares the address at an offset with a subnet.
func (f family) in(offset uint32, subnet netip.Prefix) []expr.Any {
	mask := make([]byte, f.length)
	for i := range subnet.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	return append(f.load(wideR, offset),
		&expr.Bitwise{SourceRegister: wideR, DestRegister: wideR, Len: f.length, Mask: mask, Xor: make([]byte, f.length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: wideR, Data: subnet.Masked().Addr().AsSlice()})
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

// masq takes a random port: two pods that use one source port towards the same
// server would otherwise race for it in conntrack.
func masq() []expr.Any { return []expr.Any{&expr.Masq{FullyRandom: true}} }

// masqueradeRules are a subnet's: what stays inside or is multicast is left alone.
func (f family) masqueradeRules(subnet netip.Prefix) [][]expr.Any {
	return [][]expr.Any{
		join(f.in(f.dadr, subnet), verdict(expr.VerdictReturn, "")),
		join(f.in(f.dadr, f.multicast), verdict(expr.VerdictReturn, "")),
		masq(),
	}
}

// hairpinRules are a subnet's, for forwarded packets to one of its pods.
func (f family) hairpinRules(subnet netip.Prefix) [][]expr.Any {
	return [][]expr.Any{join(f.in(f.saddr, subnet), masq())}
}

// forwarded holds for connections whose destination was translated.
func forwarded() []expr.Any {
	const dstNAT = 1 << 5 // the kernel's IPS_DST_NAT
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: wideR},
		&expr.Bitwise{SourceRegister: wideR, DestRegister: wideR, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: wideR, Data: make([]byte, 4)},
	}
}

// toLocal holds for packets to an address of this machine.
func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: wideR, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: wideR, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func lookupVerdict(m *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: wideR, DestRegister: 0, IsDestRegSet: true, SetName: m.Name}}
}

// forwardRule looks the packet up in a port map and translates its destination.
func (f family) forwardRule(m *nftables.Set, at bool) []expr.Any {
	words := f.length / 4
	rule := f.only()
	next := uint32(reg)
	if at {
		rule = append(rule, f.load(reg, f.dadr)...)
		next += words
	}
	return append(rule,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: next},
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: m.Name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: reg, RegProtoMin: reg + words})
}

// element gives the map and the element of a forward.
func (l *layout) element(fw Forward, o Owner) (*nftables.Set, nftables.SetElement) {
	f := familyOf(fw.To.Addr())
	m := f.pick(l.ports4, l.ports6)
	var key []byte
	if fw.HostIP.IsValid() {
		m = f.pick(l.ports4At, l.ports6At)
		key = fw.HostIP.AsSlice()
	}
	// Each part of a concatenation fills whole words.
	key = append(key, fw.Protocol, 0, 0, 0)
	key = append(binary.BigEndian.AppendUint16(key, fw.HostPort), 0, 0)
	val := fw.To.Addr().AsSlice()
	val = append(binary.BigEndian.AppendUint16(val, fw.To.Port()), 0, 0)
	return m, nftables.SetElement{Key: key, Val: val, Comment: o.comment()}
}

// addTable writes the fixed part: it says all of it each time, so that two
// processes that find no table do no harm.
func (c *Conn) addTable() {
	c.nft.AddTable(c.table)
	for _, m := range append(c.masquerades(), c.forwards()...) {
		c.nft.AddSet(m, nil) // its only error is about anonymous sets
	}
	four, six := ipv4(), ipv6()
	ports := c.addChain("ports",
		four.forwardRule(c.ports4At, true), four.forwardRule(c.ports4, false),
		six.forwardRule(c.ports6At, true), six.forwardRule(c.ports6, false))
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, rules ...[]expr.Any) {
		c.fill(c.nft.AddChain(&nftables.Chain{Name: name, Table: c.table, Type: kind, Hooknum: hook, Priority: priority}), rules...)
	}
	local := join(toLocal(), verdict(expr.VerdictJump, ports.Name))
	base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, local)
	base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, local)
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
		join(four.only(), forwarded(), four.in(four.saddr, loopback), masq()),
		join(four.only(), forwarded(), four.load(wideR, four.dadr), lookupVerdict(c.hairpin4)),
		join(six.only(), forwarded(), six.load(wideR, six.dadr), lookupVerdict(c.hairpin6)),
		join(four.only(), four.load(wideR, four.saddr), lookupVerdict(c.masquerade4)),
		join(six.only(), six.load(wideR, six.saddr), lookupVerdict(c.masquerade6)))
	// route_localnet, which host ports on 127.0.0.1 need, would let a pod reach
	// what listens on the host's loopback (CVE-2020-8558).
	base("loopback", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw,
		join(four.only(), []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: wideR},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: wideR, Data: []byte("lo\x00")},
		}, four.in(four.dadr, loopback), verdict(expr.VerdictDrop, "")))
}

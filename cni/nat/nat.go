// Package nat keeps the address translation of all pods in one nftables table.
//
// The table "longshore" has a few fixed rules and maps; what belongs to an
// attachment is an element of a map, with its owner as comment. So the number
// of rules a packet passes does not grow with the pods, a change is one small
// atomic batch, and the kernel itself refuses a host port given out twice. The
// table is the only state, and it belongs to the network namespace of the
// calling thread; several processes may change it at once.
//
// A packet to a local address is looked up in the host port maps, first with
// its address and then without. On the way out, pods with masquerade take the
// host's address when they leave their subnet; a forwarded host port does so
// for clients in the pod's own subnet and on the loopback interface, whose
// replies would not come back here.
package nat

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the table in the inet family.
const TableName = "longshore"

// ErrPortTaken says that another pod has the host port.
var ErrPortTaken = errors.New("host port is taken")

// Owner is an attachment: an interface of a container in a network.
type Owner struct{ Network, ContainerID, IfName string }

// The longest words of a comment: the kernel takes 256 bytes of user data.
const (
	maxNetworkWord = 64
	maxIDWord      = 128
)

// comment spells the owner; each part is a word without a slash.
func (o Owner) comment() string {
	return word(o.Network, maxNetworkWord) + "/" + word(o.ContainerID, maxIDWord) + "/" + o.IfName
}

// word shortens what is too long to its hash.
func word(s string, longest int) string {
	if len(s) <= longest {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// Forward is one host port of a pod.
type Forward struct {
	// HostIP limits the forward to one local address; the zero value is any.
	HostIP   netip.Addr
	HostPort uint16
	// Protocol is unix.IPPROTO_TCP, _UDP or _SCTP.
	Protocol uint8
	// To is where in the pod it goes.
	To netip.AddrPort
}

// Conn speaks to the kernel's nftables of one network namespace.
type Conn struct {
	nft *nftables.Conn
	layout
}

// Open opens a connection in the calling thread's network namespace.
func Open() (*Conn, error) {
	nft, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &Conn{nft, newLayout()}, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.nft.CloseLasting() }

// Masquerade makes an attachment's addresses (each with its subnet) take the
// host's when they leave the subnet.
func (c *Conn) Masquerade(o Owner, addresses []netip.Prefix) error {
	if len(addresses) == 0 {
		return nil
	}
	err := c.change(func() error {
		for _, a := range addresses {
			if err := c.addVerdict(familyOf(a.Addr()).pick(c.masquerade4, c.masquerade6), a.Addr(), masqueradeChain(a.Masked()), o); err != nil {
				return err
			}
		}
		return nil
	}, addresses)
	if err != nil {
		return fmt.Errorf("masquerade %v: %w", addresses, err)
	}
	return nil
}

// Forward opens host ports to an attachment's addresses (each with its subnet).
// Either all are opened or none; [ErrPortTaken] names the one that is taken.
func (c *Conn) Forward(o Owner, forwards []Forward, addresses []netip.Prefix) error {
	if len(forwards) == 0 {
		return nil
	}
	err := c.change(func() error {
		for _, a := range addresses {
			if err := c.addVerdict(familyOf(a.Addr()).pick(c.hairpin4, c.hairpin6), a.Addr(), hairpinChain(a.Masked()), o); err != nil {
				return err
			}
		}
		for _, fw := range forwards {
			m, element := c.element(fw, o)
			if err := c.nft.SetAddElements(m, []nftables.SetElement{element}); err != nil {
				return err
			}
		}
		return nil
	}, addresses)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return c.nameConflict(o, forwards, err)
	}
	if err != nil {
		return fmt.Errorf("forward host ports: %w", err)
	}
	return nil
}

// nameConflict finds which port is taken, and by whom.
func (c *Conn) nameConflict(o Owner, forwards []Forward, cause error) error {
	for _, fw := range forwards {
		m, want := c.element(fw, o)
		elements, err := c.nft.GetSetElements(m)
		if err != nil {
			continue
		}
		for _, e := range elements {
			if string(e.Key) == string(want.Key) && (string(e.Val) != string(want.Val) || e.Comment != want.Comment) {
				return fmt.Errorf("host port %s: %w by %s", fw, ErrPortTaken, e.Comment)
			}
		}
	}
	return fmt.Errorf("forward host ports: %w", cause)
}

// String gives the host side, as "8080/tcp" or "10.0.0.1:8080/tcp".
func (fw Forward) String() string {
	protocol := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}[fw.Protocol]
	if fw.HostIP.IsValid() {
		return netip.AddrPortFrom(fw.HostIP, fw.HostPort).String() + "/" + protocol
	}
	return fmt.Sprintf("%d/%s", fw.HostPort, protocol)
}

// RemoveMasquerade takes back [Conn.Masquerade]; nothing there is success.
func (c *Conn) RemoveMasquerade(o Owner) error { return c.remove(c.masquerades(), is(o)) }

// RemoveForwards takes back [Conn.Forward]; nothing there is success.
func (c *Conn) RemoveForwards(o Owner) error { return c.remove(c.forwards(), is(o)) }

// CollectMasquerade removes what a network's attachments have left, but for the
// valid ones.
func (c *Conn) CollectMasquerade(network string, valid []Owner) error {
	return c.remove(c.masquerades(), stale(network, valid))
}

// CollectForwards does so for host ports.
func (c *Conn) CollectForwards(network string, valid []Owner) error {
	return c.remove(c.forwards(), stale(network, valid))
}

func is(o Owner) func(comment string) bool {
	want := o.comment()
	return func(comment string) bool { return comment == want }
}

func stale(network string, valid []Owner) func(comment string) bool {
	keep := map[string]bool{}
	for _, o := range valid {
		keep[o.comment()] = true
	}
	return func(comment string) bool {
		return strings.HasPrefix(comment, word(network, maxNetworkWord)+"/") && !keep[comment]
	}
}

// remove deletes the elements whose comment is to be dropped, in one batch.
func (c *Conn) remove(maps []*nftables.Set, drop func(comment string) bool) error {
	there, err := c.tableExists()
	if err != nil || !there {
		return err
	}
	found := false
	for _, m := range maps {
		elements, err := c.nft.GetSetElements(m)
		if err != nil {
			return fmt.Errorf("list nftables map %s: %w", m.Name, err)
		}
		var old []nftables.SetElement
		for _, e := range elements {
			if drop(e.Comment) {
				old = append(old, nftables.SetElement{Key: e.Key})
			}
		}
		if len(old) == 0 {
			continue
		}
		found = true
		if err := c.nft.SetDeleteElements(m, old); err != nil {
			return err
		}
	}
	if !found {
		return nil
	}
	err = c.nft.Flush()
	if errors.Is(err, unix.ENOENT) {
		// Another process removed some of them between the listing and now.
		return c.remove(maps, drop)
	}
	if err != nil {
		return fmt.Errorf("change nftables: %w", err)
	}
	return nil
}

// Count gives how many elements an owner has, masquerade and forwards.
func (c *Conn) Count(o Owner) (masquerade, forwards int, err error) {
	there, err := c.tableExists()
	if err != nil || !there {
		return 0, 0, err
	}
	count := func(maps []*nftables.Set) (n int) {
		for _, m := range maps {
			elements, e := c.nft.GetSetElements(m)
			if e != nil {
				err = fmt.Errorf("list nftables map %s: %w", m.Name, e)
			}
			for _, e := range elements {
				if e.Comment == o.comment() {
					n++
				}
			}
		}
		return n
	}
	return count(c.masquerades()), count(c.ports()), err
}

// tableExists asks by listing: a question about one table that is not there
// would come back as an error without a number.
func (c *Conn) tableExists() (bool, error) {
	tables, err := c.nft.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == TableName {
			return true, nil
		}
	}
	return false, nil
}

// change sends a batch of elements. Where a map or a subnet's chain is not there
// yet, it is made first, and the whole sent again in one batch. Saying all that
// each time would do too, but the kernel waits for a grace period (some ten
// milliseconds) when a socket closes after a chain was touched.
func (c *Conn) change(elements func() error, addresses []netip.Prefix) error {
	if err := elements(); err != nil {
		return err
	}
	err := c.nft.Flush()
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	c.addTable()
	for _, a := range addresses {
		f, subnet := familyOf(a.Addr()), a.Masked()
		c.addChain(masqueradeChain(subnet), f.masqueradeRules(subnet)...)
		c.addChain(hairpinChain(subnet), f.hairpinRules(subnet)...)
	}
	if err := elements(); err != nil {
		return err
	}
	return c.nft.Flush()
}

// addChain writes a chain's rules anew, whatever it held.
func (c *Conn) addChain(name string, rules ...[]expr.Any) *nftables.Chain {
	chain := c.nft.AddChain(&nftables.Chain{Name: name, Table: c.table})
	c.fill(chain, rules...)
	return chain
}

func (c *Conn) fill(chain *nftables.Chain, rules ...[]expr.Any) {
	c.nft.FlushChain(chain)
	for _, exprs := range rules {
		c.nft.AddRule(&nftables.Rule{Table: c.table, Chain: chain, Exprs: exprs})
	}
}

func (c *Conn) addVerdict(m *nftables.Set, a netip.Addr, chain string, o Owner) error {
	return c.nft.SetAddElements(m, []nftables.SetElement{{
		Key:         a.AsSlice(),
		VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain},
		Comment:     o.comment(),
	}})
}

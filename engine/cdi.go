package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// CDIDevices gives the names of the CDI devices that a container asks for: in
// its list, then by annotations, whose keys begin with "cdi.k8s.io/" (CDI,
// annotations of a container runtime).
func CDIDevices(cfg *ContainerConfig) ([]string, error) {
	names := slices.Clone(cfg.CDIDevices)
	for _, key := range slices.Sorted(maps.Keys(cfg.Annotations)) {
		_, found, err := cdi.ParseAnnotations(map[string]string{key: cfg.Annotations[key]})
		if err != nil {
			return nil, fmt.Errorf("%w: annotation %s: %w", ErrInvalid, key, err)
		}
		names = append(names, found...)
	}
	var once []string
	for _, name := range names {
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	return once, nil
}

// InjectCDI edits a container's specification as the specifications of CDI
// devices in dirs say, of which later ones win. The files are read anew each
// time: what they describe may have changed, and no watch has to be kept for
// containers that have no such devices.
func InjectCDI(spec *specs.Spec, dirs, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	if len(dirs) == 0 {
		return fmt.Errorf("%w: CDI device %s: no directory of specifications is configured", ErrInvalid, strings.Join(devices, ", "))
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("CDI specifications: %w", err)
	}
	unknown, err := cache.InjectDevices(spec, devices...)
	if len(unknown) > 0 {
		return fmt.Errorf("%w: CDI device %s: no such device in %s%s", ErrInvalid, strings.Join(unknown, ", "), strings.Join(dirs, ", "), unreadCDI(cache))
	}
	if err != nil {
		return fmt.Errorf("%w: CDI device %s: %w", ErrInvalid, strings.Join(devices, ", "), err)
	}
	return nil
}

// unreadCDI says which files were not understood: the device that is missed
// may be in one of them.
func unreadCDI(cache *cdi.Cache) string {
	var out strings.Builder
	broken := cache.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(broken)) {
		fmt.Fprintf(&out, "; %s: %v", path, broken[path])
	}
	return out.String()
}

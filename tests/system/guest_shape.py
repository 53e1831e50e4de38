"""What a guest of the container or the machine is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from lab import boot_image

FLOPPY_BYTES: Final = 1_474_560

DOMAIN: Final = """<domain type='{kind}'>
  <name>{name}</name>{metadata}{iothreads}<memory unit='MiB'>16</memory><vcpu{cpuset}>{vcpus}</vcpu>
  <cputune>{cputune}</cputune><numatune>{numatune}</numatune>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='fd'/></os><features><acpi/></features>
  <devices>
    <disk type='file' device='floppy'>
      <driver name='qemu' type='raw'/><source file='{image}'/>
      <target dev='fda' bus='fdc'/><readonly/>
    </disk>
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>
</domain>
"""
PERIOD_US: Final = 100_000
METADATA: Final = "<metadata><v:domain xmlns:v='urn:vcpusched:domain:1' policy={}/></metadata>"


@dataclass(frozen=True, slots=True)
class GuestShape:
    """A guest: the share of a pCPU that each vCPU uses, and what its definition says beside that.

    `pins` are where its vCPUs are put once it runs, as cpulists; none for where libvirt puts them.
    `cpuset` is the attribute of <vcpu>; `quota` the most that each vCPU gets, in pCPUs; `cputune`
    and `numatune` further elements of those, `iothreads` how many I/O threads it has; `policy` what
    its metadata asks of vcpusched.
    """

    shares: Sequence[float]
    pins: Sequence[str] = ()
    cpuset: str | None = None
    quota: float | None = None
    cputune: str = ""
    numatune: str = ""
    iothreads: int = 0
    policy: str | None = None

    def floppy(self) -> bytes:
        """Give what it boots from."""
        return boot_image(self.shares).ljust(FLOPPY_BYTES, b"\0")

    def xml(self, kind: str, name: str, image: str) -> str:
        """Give the libvirt definition; `kind` is "kvm" or "qemu", `image` its floppy."""
        return DOMAIN.format(
            kind=kind,
            name=escape(name),
            metadata="" if self.policy is None else METADATA.format(quoteattr(self.policy)),
            iothreads=f"<iothreads>{self.iothreads}</iothreads>" if self.iothreads else "",
            vcpus=len(self.shares),
            cpuset="" if self.cpuset is None else f" cpuset={quoteattr(self.cpuset)}",
            cputune=self.cputune if self.quota is None else self.cputune + _quota(self.quota),
            numatune=self.numatune,
            image=escape(image),
        )


def _quota(share: float) -> str:
    return f"<period>{PERIOD_US}</period><quota>{round(share * PERIOD_US)}</quota>"

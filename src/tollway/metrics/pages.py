"""The pages of several processes as one."""

from collections.abc import Mapping


def merged_pages(label: str, pages: Mapping[str, str]) -> str:
    """One page of several processes' pages, in Prometheus's text format: each sample gets the
    label, with the name of its page."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for name, page in pages.items():
        family = ""
        for line in page.splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                heads.setdefault(family, [line])
                samples.setdefault(family, [])
            elif line.startswith("#"):
                if len(heads[family]) < 2:
                    heads[family].append(line)
            else:
                samples[family].append(_labelled(line, f'{label}="{name}"'))
    return "".join(
        f"{line}\n" for family, head in heads.items() for line in (*head, *samples[family])
    )


def _labelled(sample: str, label: str) -> str:
    named, value = sample.rsplit(" ", 1)
    if named.endswith("}"):
        return f"{named[:-1]},{label}}} {value}"
    return f"{named}{{{label}}} {value}"

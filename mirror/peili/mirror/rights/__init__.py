"""Who may pull what: the registry decides, and this host remembers its answers for a while.

- `policy` has what the operator decides, and `coverage` which repositories that covers.
- `gate` decides about a request to the local door. For covered content, `covered` decides.
- `registry_answers` asks the registry, `grants` remembers that it said yes, and `credentials` who asked. `outages`
  finds out whether the registry is down.
- `repositories` finds out to whom content belongs: by what `manifests` refer to, and by `arrivals` while it arrives.
"""

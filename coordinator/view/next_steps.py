"""The next step for each reason: the column "What to do" of docs/reasons.md, which a test compares with this table.

A message says what is wrong with this object and with which numbers; this says what a person does about its kind. No
entry: the message says all there is to do, or there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Mapping

NEXT_STEPS: Mapping[str, str] = {
    # Sources
    "SourceError": "Nothing, unless it lasts: ask whoever runs it.",
    "SourceUnreachable": "Look at the name, the network and `NO_PROXY`.",
    "SourceStalled": "Look at the network, or lower `LOCALMODEL_MIN_SPEED`.",
    "SourceUntrusted": "Mount the authority: `REQUESTS_CA_BUNDLE`, `ca_bundle`.",
    "SourceThrottled": "Nothing; `--origin-requests` if it happens often.",
    "Crowded": "Nothing.",
    "WaitingForOrigin": "Nothing; `--origin-requests` or `--origin-budgets` if it lasts.",
    "SourceChanged": "Nothing; `fill`: delete DIR and fill it again.",
    "SourceExpired": "Nothing.",
    "SourceNotFound": "Correct the URI, or give credentials: some hide what is private.",
    "RevisionNotFound": "Correct `revision`.",
    "SourceDenied": "Give (other) credentials, or allow them there.",
    "CredentialsMissing": "Create it in the job namespace.",
    "CredentialsUnavailable": "Look at RBAC and the API server.",
    "CredentialsInvalid": "Correct what the message names.",
    "CredentialsExpired": "Renew it in the Secret.",
    "ObjectArchived": "Restore it, or leave it out with `exclude`.",
    "KeyUnavailable": "Enable or allow it.",
    "RequesterPays": "Such buckets cannot be read.",
    "ClockSkewed": "Synchronise its clock.",
    "WrongRegion": "Set the region, or the endpoint.",
    "NotSignable": "Leave them out with `exclude`.",
    "InvalidAnswer": "Look at what answers there: a proxy, a login page.",
    "InvalidManifest": "Leave it out with `exclude`, or correct the source.",
    "ListingIncomplete": "Name an endpoint with a tree.",
    "ListingTooLarge": "Leave files out, or raise `LOCALMODEL_MAX_FILES`.",
    "ListingTooSlow": "Nothing, unless it lasts.",
    "SizeUnknown": "Use a server that does.",
    "ArchiveRefused": "Pack it anew.",
    "ArchiveDamaged": "Upload it again.",
    "RedirectLoop": "Correct the server.",
    "RedirectRefused": "`LOCALMODEL_PRIVATE_REDIRECTS`, if that is how your network is.",
    "OriginNotAllowed": "`--allow-origins`.",
    "SchemeNotAllowed": "`--allow-schemes`, `--file-roots`.",
    "InvalidURI": "Make another cache: the URI cannot be edited.",
    "SourceUnsupported": "Name another source.",
    "PackageMissing": "Install the extra that the message names.",
    "InvalidProxy": "Correct `HTTPS_PROXY`.",
    "InvalidCABundle": "Correct the variable that the message names.",
    "RangesIgnored": "Nothing.",
    "ResolveFailed": "Report it.",
    # Content
    "IntegrityError": (
        "Compare the source with its own digests; look at the node's memory and disk if only one node says so."
    ),
    "DigestMismatch": "Correct `spec.digest`, or the source.",
    "Damaged": "Look at the disk if it comes back.",
    "ModelDamaged": "The command in the message.",
    "MarkerDamaged": "The command in the message, which reads every byte.",
    "MarkerNewer": "Use that version, or the command in the message.",
    "NotAModel": "Fill DIR, or name another.",
    "Unreadable": "What the message says.",
    # The disk of a node
    "InsufficientStorage": "Raise `storageLimit`, remove a model, or turn eviction on.",
    "Evicted": "`pinned` keeps it.",
    "PathMismatch": "Correct the group's path, or the mount of the agent.",
    "PathOccupied": "Move it away.",
    "NamesCollide": "Another filesystem, or `exclude`.",
    "DiskReadOnly": "Look at the node's log.",
    "DiskPermissionDenied": "Owner and mode of the folder: user 1000 in `k8s/base`.",
    "DiskFailing": "Replace the disk.",
    "FileTooLarge": "Another filesystem, or a higher limit.",
    "StoreError": "What the message says.",
    "Fenced": "Nothing; two agents on one disk, if it lasts.",
    "Busy": "Wait for it.",
    "OutOfThreads": "Raise the limit of processes of the pod.",
    "InternalError": "Report it.",
    # Node agents
    "AgentUnavailable": "Does its Ray worker run, does the network reach it?",
    "AgentDied": "The log of the Ray worker on this node.",
    "AgentError": "What the message says.",
    "NoRayNode": ("The node's label and taints: `kubectl -n localmodel describe daemonset localmodel-agent`."),
    "NodeCordoned": "`kubectl uncordon`.",
    "RayUnavailable": "Look at the head, and `--ray-address`.",
    # Specs
    "InvalidObject": "Correct it.",
    "NodeGroupNotFound": "Create the group, or correct the name.",
    "NodeGroupInvalid": "Correct it.",
    "NoNodeAffinity": "Add it.",
    "NoMatchingNodes": "Label nodes, or correct the affinity.",
    "SourceConflict": "Give both the same, or delete one.",
    "Unproven": "Wait until its own source has been read, or look why that fails.",
    "DuplicateSource": "Delete one.",
    "Orphaned": "Put right what the message names, or wait.",
}

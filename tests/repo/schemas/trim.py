"""Trims Kubernetes' schemas to what deploy/ uses: `python trim.py .../_definitions.json > kubernetes.json`.

The file is that of v1.34.0-local-strict/ in the package kubernetes-validate 1.37.0 (Apache-2.0), which is made from
Kubernetes' own OpenAPI document; `strict` means that no unknown field passes. Descriptions go, types stay as they are.
"""

import json
import re
import sys

KINDS = ("batch.v1.CronJob", "core.v1.PersistentVolumeClaim", "core.v1.ServiceAccount", "rbac.v1.Role")
KINDS += ("rbac.v1.RoleBinding", "networking.v1.NetworkPolicy")
FOR_KUBERAY = ("core.v1.PodTemplateSpec", "core.v1.Service", "core.v1.EnvVar", "core.v1.EnvFromSource")
FOR_KUBERAY += (
    "core.v1.EnvVarSource",
    "core.v1.VolumeMount",
    "core.v1.ResourceRequirements",
    "core.v1.SecurityContext",
)


def trimmed(value: object) -> object:
    if isinstance(value, dict):
        return {k: trimmed(v) for k, v in value.items() if not (k == "description" and isinstance(v, str))}
    return [trimmed(item) for item in value] if isinstance(value, list) else value


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        definitions = json.load(file)["$defs"]
    kept: dict[str, object] = {}
    wanted = [f"io.k8s.api.{name}" for name in (*KINDS, *FOR_KUBERAY)]
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = trimmed(definitions[name])
            wanted += re.findall(r'"\$ref": "[^"]*/\$defs/([^"]+)"', json.dumps(kept[name]))
    about = {
        "source": "kubernetes-validate 1.37.0: v1.34.0-local-strict/_definitions.json, of Kubernetes' OpenAPI document",
        "version": "Kubernetes 1.34.0",
        "licence": "Apache-2.0",
        "trimmed": "by tests/repo/schemas/trim.py: only what deploy/ uses, without descriptions",
    }
    text = json.dumps({"about": about, "$defs": dict(sorted(kept.items()))}, sort_keys=False)
    # References within the one file, a definition a line.
    text = re.sub(r'"\$ref": "[^"#]*#', '"$ref": "#', text)
    print(re.sub(r', ("io\.k8s\.[^"]+": \{)', r",\n\1", text))


if __name__ == "__main__":
    main(sys.argv[1])

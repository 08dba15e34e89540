# Convergence Atlas: measure what papers about convergence claim.
#   snakemake                  every paper at the tier of config/config.yaml
#   snakemake ef21_reloaded    one paper;  snakemake federated: one family
#   snakemake --profile slurm  on a cluster
from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/paper.smk"
include: "workflow/rules/results.smk"


rule all:
    default_target: True
    input:
        rules.track.output,
        rules.atlas.output,


localrules:
    all,


onstart:
    begin()


onsuccess:
    end()


onerror:
    end()

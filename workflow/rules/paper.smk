# One measurement and one verification per paper.
wildcard_constraints:
    paper="[a-z0-9_]+",


rule measure:
    """Run a paper's experiment: its table of measurements and where it came from."""
    message:
        "measuring {wildcards.paper}"
    input:
        sources,
        ancient(datasets),
    output:
        f"{OUT}/{{paper}}/measurements.parquet",
        f"{OUT}/{{paper}}/provenance.json",
    log:
        f"{OUT}/{{paper}}/measure.log",
    benchmark:
        f"{OUT}/{{paper}}/measure.tsv"
    conda:
        "../../environment.yml"
    params:
        tier=CONFIG.tier,
        seed=CONFIG.seed,
        device=CONFIG.device,
        setting=lambda wildcards: json.dumps(SETTINGS[wildcards.paper], sort_keys=True),
        override=lambda wildcards: json.dumps(CONFIG.settings.get(wildcards.paper, {})),
        data=lambda wildcards: {name: DATA[name].md5 for name in PAPERS[wildcards.paper].data},
        folder=f"{OUT}/{{paper}}",
    threads: resource("cpus")
    resources:
        mem_mb=resource("mem_mb", grow=True),
        runtime=resource("runtime", grow=True),
        gpus=resource("gpus"),
    shell:
        "{ATLAS} measure {wildcards.paper} --tier {params.tier} --seed {params.seed} --device {params.device}"
        " --override {params.override:q} --minutes {resources.runtime} --out {params.folder:q} > {log} 2>&1"


rule verify:
    """Judge every claim of a paper and its controls; draw the figure."""
    message:
        "judging {wildcards.paper}"
    input:
        f"{OUT}/{{paper}}/measurements.parquet",
        f"{OUT}/{{paper}}/provenance.json",
        paper=lambda wildcards: os.path.relpath(PAPERS[wildcards.paper].folder / "paper.yaml"),
    output:
        f"{OUT}/{{paper}}/verdicts.json",
        report(f"{OUT}/{{paper}}/figure.svg", category="Papers", labels={"paper": "{paper}"}),
    log:
        f"{OUT}/{{paper}}/verify.log",
    benchmark:
        f"{OUT}/{{paper}}/verify.tsv"
    conda:
        "../../environment.yml"
    params:
        code=JUDGE,
        folder=f"{OUT}/{{paper}}",
    shell:
        "{ATLAS} verify {wildcards.paper} --out {params.folder:q} > {log} 2>&1"


localrules:
    verify,


# `snakemake <slug>` and `snakemake <family>`
for slug in PAPERS:

    rule:
        name:
            slug
        input:
            f"{OUT}/{slug}/verdicts.json",


for family in FAMILIES:

    rule:
        name:
            family
        input:
            [f"{OUT}/{slug}/verdicts.json" for slug, paper in PAPERS.items() if paper.family == family],


localrules:
    *PAPERS,
    *FAMILIES,

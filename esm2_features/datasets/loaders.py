"""Data sets: peptides and protein variants with measured properties, for examples and benchmarks.

>>> from esm2_features import datasets
>>> peptides = datasets.load_demo_peptides()
>>> peptides.data.shape, sorted(set(peptides.target))
((155, 2), ['hormone', 'toxin'])

``load_`` reads what ships with this library. ``fetch_`` downloads a data set the first time, and
checks it against a pinned SHA-256 each time. It has a licence of its own.

Parameters and results are those of scikit-learn's own data sets (`sklearn.datasets`). Data without
``as_frame`` has dtype object, since sequences are text. A download that fails is not tried again.

Most of these data sets have several rows of one protein. Split them by protein, with
`sklearn.model_selection.GroupKFold`; otherwise a test says little about new proteins.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from esm2_features.datasets.files import csv_rows, read_table
from esm2_features.datasets.sources import GB1_SPLITS, MEGASCALE, S2648, TOXICITY, WILDTYPE
from esm2_features.exceptions import InputError, import_optional

_STABILITY = {
    "protein": object,
    "mutation": object,
    "position": np.int64,
    "wildtype": object,
    "sequence": object,
    "ddG": np.float64,
}


def load_demo_peptides(*, return_X_y: bool = False, as_frame: bool = False) -> Any:
    """Load well-known venom toxins and human hormones (classification).

    The table ships with this library: nothing is downloaded. It is for first steps and tests.
    Toxins and hormones differ in so many ways that to tell them apart says little about a method.

    =============  =====================
    Samples        155
    Classes        toxin, hormone
    Lengths        8 to 78 residues
    =============  =====================

    Parameters
    ----------
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.
    as_frame : bool, default=False
        If True, data is a pandas DataFrame and target a pandas Series.

    Returns
    -------
    data : sklearn.utils.Bunch
        Or a tuple (data, target) if ``return_X_y``. The Bunch has

        data : ndarray of shape (155, 2), dtype object, or DataFrame
            The columns ``name`` and ``sequence``.
        target : ndarray of shape (155,), dtype object, or Series
            ``kind``: ``"toxin"`` or ``"hormone"``.
        frame : DataFrame of shape (155, 3) or None
            Data and target, if ``as_frame``.
        feature_names : list of str
            Names of the columns of data.
        target_names : list of str
            The classes, ``["hormone", "toxin"]``.
        DESCR : str
            This text.

    Raises
    ------
    MissingDependencyError
        If ``as_frame`` and pandas is not installed.

    Notes
    -----
    The file, ``demo_peptides.csv`` in the folder ``data`` of this package, also has the organism of
    each peptide and the accession of its entry in UniProtKB.

    Examples
    --------
    >>> from esm2_features.datasets import load_demo_peptides
    >>> X, kind = load_demo_peptides(return_X_y=True)
    >>> X[0, 0], kind[0], len(X[0, 1])
    ('Adrenomedullin', 'hormone', 52)
    >>> load_demo_peptides(as_frame=True).frame.groupby("kind").size().to_dict()
    {'hormone': 72, 'toxin': 83}
    """
    file = resources.files("esm2_features").joinpath("data", "demo_peptides.csv")
    rows = [(row["name"], row["sequence"], row["class"]) for row in csv_rows(file)]
    columns = {"name": object, "sequence": object, "kind": object}
    classes = ["hormone", "toxin"]
    return _bunch(load_demo_peptides, rows, columns, return_X_y, as_frame, classes)


def fetch_toxicity_peptides(
    *,
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
    as_frame: bool = False,
) -> Any:
    """Fetch toxic and non-toxic peptides (classification).

    =============  ===================================
    Samples        3284, of which 1663 are toxic
    Classes        0 (not toxic), 1 (toxic)
    Lengths        13 to 50 residues
    Download       0.1 MB
    =============  ===================================

    Parameters
    ----------
    data_home : path, optional
        Folder of the file. By default ``$ESM2_FEATURES_DATA``, or else ``datasets`` in
        ``$ESM2_FEATURES_HOME`` or in the user's cache folder.
    download_if_missing : bool, default=True
        If False, raise an error if the file is not there.
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.
    as_frame : bool, default=False
        If True, data is a pandas DataFrame and target a pandas Series.

    Returns
    -------
    data : sklearn.utils.Bunch
        Or ``(data, target)`` if ``return_X_y``. As that of `load_demo_peptides`, with

        data : ndarray of shape (3284, 1), dtype object, or DataFrame
            The column ``sequence``.
        target : ndarray of shape (3284,), dtype int64, or Series
            ``toxic``: 1 or 0.
        target_names : list of str
            ``["not toxic", "toxic"]``, the classes 0 and 1.

    Raises
    ------
    DatasetError
        If the file is missing and cannot be downloaded, or is not the published one.
    MissingDependencyError
        If ``as_frame`` and pandas is not installed.

    Notes
    -----
    This is the training part of the data set "toxicity 2021" of UniDL4BioPep (Du et al.), from its
    repository https://github.com/dzjxzyd/UniDL4BioPep (MIT; its readme asks commercial users of the
    model to write to the authors). That readme says that 0 means positive; in this file 1 means
    toxic (conotoxins and scorpion toxins have it, ribosomal proteins do not). The toxic and the
    other peptides come from different families, so composition alone tells many of them apart.

    References
    ----------
    Du et al., "UniDL4BioPep: a universal deep learning architecture for binary classification in
    peptide bioactivity", Briefings in Bioinformatics 24 (2023) bbad135.
    https://doi.org/10.1093/bib/bbad135

    Examples
    --------
    >>> from esm2_features.datasets import fetch_toxicity_peptides
    >>> X, toxic = fetch_toxicity_peptides(return_X_y=True)  # doctest: +SKIP
    >>> X.shape, int(toxic.sum())  # doctest: +SKIP
    ((3284, 1), 1663)
    """
    rows = read_table(TOXICITY, data_home=data_home, download_if_missing=download_if_missing)
    columns = {"sequence": object, "toxic": np.int64}
    classes = ["not toxic", "toxic"]
    return _bunch(fetch_toxicity_peptides, rows, columns, return_X_y, as_frame, classes)


def fetch_stability_s2648(
    *,
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
    as_frame: bool = False,
) -> Any:
    """Fetch S2648, changes of stability by single mutations (regression).

    **Negative values are destabilising**, as published.

    =============  ==============================================
    Samples        2648 single mutants of 132 proteins
    Target         ddG in kcal/mol, -5.0 to 6.8
    Lengths        30 to 542 residues
    Download       0.8 MB
    =============  ==============================================

    Parameters
    ----------
    data_home, download_if_missing, return_X_y, as_frame : optional
        As in `fetch_toxicity_peptides`.

    Returns
    -------
    data : sklearn.utils.Bunch
        Or ``(data, target)`` if ``return_X_y``. As that of `load_demo_peptides`, with

        data : ndarray of shape (2648, 5), dtype object, or DataFrame
            The columns ``protein`` (PDB code and chain), ``mutation`` (as ``G156A``, numbered as in
            the PDB file), ``position`` (int, in the sequence, **from 0**), ``wildtype`` and
            ``sequence`` (of the mutant).
        target : ndarray of shape (2648,), dtype float64, or Series
            ``ddG`` in kcal/mol, negative if the mutant is less stable; ``target_names`` is
            ``["ddG"]``.

    Raises
    ------
    DatasetError, MissingDependencyError
        As in `fetch_toxicity_peptides`.

    Notes
    -----
    Dehouck et al. compiled the measurements from ProTherm. Sequences and positions are those of
    PROSTATA (Umerenkov et al.), from its repository https://github.com/mitiau/PROSTATA
    (Apache-2.0).

    References
    ----------
    Dehouck et al., "Fast and accurate predictions of protein stability changes upon mutations using
    statistical potentials and neural networks: PoPMuSiC-2.0", Bioinformatics 25 (2009) 2537-2543.
    https://doi.org/10.1093/bioinformatics/btp445

    Umerenkov et al., "PROSTATA: a framework for protein stability assessment using transformers",
    Bioinformatics 39 (2023) btad671. https://doi.org/10.1093/bioinformatics/btad671

    Examples
    --------
    >>> from esm2_features.datasets import fetch_stability_s2648
    >>> frame = fetch_stability_s2648(as_frame=True).frame  # doctest: +SKIP
    >>> frame.loc[0, ["protein", "mutation", "position", "ddG"]].tolist()  # doctest: +SKIP
    ['1A43A', 'G156A', 8, -2.4]
    """
    rows = read_table(S2648, data_home=data_home, download_if_missing=download_if_missing)
    return _bunch(fetch_stability_s2648, rows, _STABILITY, return_X_y, as_frame)


def fetch_stability_megascale(
    *,
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
    as_frame: bool = False,
) -> Any:
    """Fetch a part of the mega-scale stability data (regression).

    **Positive values are destabilising**, as published there.

    =============  ==================================================
    Samples        135,056 single mutants of 129 domains
    Target         ddG in kcal/mol, -3.2 to 5.3
    Lengths        32 to 72 residues
    Download       about 45 MB in 258 files; 2.3 MB are kept
    =============  ==================================================

    Parameters
    ----------
    data_home, download_if_missing, return_X_y, as_frame : optional
        As in `fetch_toxicity_peptides`.

    Returns
    -------
    data : sklearn.utils.Bunch
        Or ``(data, target)`` if ``return_X_y``. As that of `load_demo_peptides`, with

        data : ndarray of shape (135056, 5), dtype object, or DataFrame
            The columns ``protein`` (the domain), ``mutation`` (as ``Q1A``, numbered **from 1** in
            the sequence), ``position`` (int, the same **from 0**), ``wildtype`` and ``sequence``
            (of the mutant).
        target : ndarray of shape (135056,), dtype float64, or Series
            ``ddG`` in kcal/mol, positive if the mutant is less stable; ``target_names`` is
            ``["ddG"]``.

    Raises
    ------
    DatasetError, MissingDependencyError
        As in `fetch_toxicity_peptides`.

    Notes
    -----
    Tsuboyama et al. measured the stability of the domains and of nearly all of their single
    mutants by proteolysis on cDNA display (the data are CC BY 4.0). These are 129 domains that
    Hermans et al. selected, from their repository https://github.com/3BioCompBio/EvoStability.
    Some domains carry a mutation that brings them into the range that can be measured; their names
    end in it.

    References
    ----------
    Tsuboyama et al., "Mega-scale experimental analysis of protein folding stability in biology and
    design", Nature 620 (2023) 434-444. https://doi.org/10.1038/s41586-023-06328-6

    Hermans et al., "Exploring evolution to uncover insights into protein mutational stability",
    bioRxiv (2024). https://doi.org/10.1101/2024.05.28.596203

    Examples
    --------
    >>> from esm2_features.datasets import fetch_stability_megascale
    >>> frame = fetch_stability_megascale(as_frame=True).frame  # doctest: +SKIP
    >>> frame["protein"].nunique(), frame["mutation"].iloc[0]  # doctest: +SKIP
    (129, 'Q1A')
    """
    rows = read_table(MEGASCALE, data_home=data_home, download_if_missing=download_if_missing)
    wildtype_of = {row[0]: row[3] for row in rows if row[1] == WILDTYPE}
    # That a wild type differs from itself by 0 is a definition, not a measurement.
    mutants = [
        (protein, mutation, int(mutation[1:-1]) - 1, wildtype_of[protein], sequence, ddg)
        for protein, mutation, ddg, sequence in rows
        if mutation != WILDTYPE
    ]
    return _bunch(fetch_stability_megascale, mutants, _STABILITY, return_X_y, as_frame)


def fetch_fitness_gb1(
    *,
    split: str = "two_vs_rest",
    data_home: str | os.PathLike[str] | None = None,
    download_if_missing: bool = True,
    return_X_y: bool = False,
    as_frame: bool = False,
) -> Any:
    """Fetch the fitness of variants of GB1, with the splits of FLIP (regression).

    =============  ==============================================
    Samples        8733 variants of 4 residues of one domain
    Target         fitness, 0.0 to 8.8; the wild type has 1
    Lengths        265 residues
    Download       1 MB
    =============  ==============================================

    Parameters
    ----------
    split : str, default="two_vs_rest"
        Which variants are for training: ``"one_vs_rest"``, ``"two_vs_rest"`` and
        ``"three_vs_rest"`` (the wild type and those with up to so many mutations),
        ``"low_vs_high"`` (those no fitter than the wild type), or ``"sampled"`` (80
        %, at random; FLIP advises against it). The variants and their order are the same in all of
        them.
    data_home, download_if_missing, return_X_y, as_frame : optional
        As in `fetch_toxicity_peptides`.

    Returns
    -------
    data : sklearn.utils.Bunch
        Or ``(data, target)`` if ``return_X_y``. As that of `load_demo_peptides`, with

        data : ndarray of shape (8733, 3), dtype object, or DataFrame
            The columns ``sequence``, ``set`` (``"train"`` or ``"test"``) and ``validation`` (bool:
            the tenth or so of the training set that FLIP validates with).
        target : ndarray of shape (8733,), dtype float64, or Series
            ``fitness``, relative to the wild type: how much of a variant survives selection for
            binding to IgG-Fc, without a unit. ``target_names`` is ``["fitness"]``.

    Raises
    ------
    InputError
        If there is no such split.
    DatasetError, MissingDependencyError
        As in `fetch_toxicity_peptides`.

    Notes
    -----
    Wu et al. measured variants of V39, D40, G41 and V54 (``sequence[38]``, ``[39]``, ``[40]`` and
    ``[53]``) of the IgG-binding domain of protein G (CC BY 4.0); FLIP (Dallago et al.) chose those
    that are here, and the splits, from its repository https://github.com/J-SNACKKB/FLIP (AFL-3.0).
    The sequence is that of PDB entry 5LDE, chain A: the domain is its first 56 residues, and what
    follows is a fusion partner.

    References
    ----------
    Wu et al., "Adaptation in protein fitness landscapes is facilitated by indirect paths", eLife 5
    (2016) e16965. https://doi.org/10.7554/eLife.16965

    Dallago et al., "FLIP: benchmark tasks in fitness landscape inference for proteins", NeurIPS
    Datasets and Benchmarks (2021). https://doi.org/10.1101/2021.11.09.467890

    Examples
    --------
    >>> from esm2_features.datasets import fetch_fitness_gb1
    >>> frame = fetch_fitness_gb1(as_frame=True).frame  # doctest: +SKIP
    >>> (frame["set"] == "train").sum()  # doctest: +SKIP
    np.int64(424)
    """
    splits = {path.rpartition("/")[2].removesuffix(".csv"): path for path in GB1_SPLITS.tables}
    if split not in splits:
        raise InputError(f"There is no split {split!r} of GB1. Choose one of {sorted(splits)}.")
    rows = read_table(
        GB1_SPLITS, splits[split], data_home=data_home, download_if_missing=download_if_missing
    )
    variants = [
        (sequence, role, validation == "True", fitness)
        for sequence, fitness, role, validation in rows
    ]
    columns = {"sequence": object, "set": object, "validation": bool, "fitness": np.float64}
    return _bunch(fetch_fitness_gb1, variants, columns, return_X_y, as_frame)


def _bunch(
    source: Callable[..., Any],
    rows: Iterable[Sequence[Any]],
    columns: Mapping[str, type],
    return_X_y: bool,
    as_frame: bool,
    classes: list[str] | None = None,
) -> Any:
    """Return what scikit-learn's data sets return, of rows in columns of these dtypes.

    The last column is the target; ``classes`` is None for a measured quantity.
    """
    arrays: dict[str, Any] = {
        name: np.array(cells, dtype)
        for (name, dtype), cells in zip(columns.items(), zip(*rows, strict=True), strict=True)
    }
    *names, label = arrays
    target, frame = arrays[label], None
    if as_frame:
        purpose = f"{source.__name__}(as_frame=True)"
        pandas: Any = import_optional("pandas", extra="pandas", purpose=purpose)
        frame = pandas.DataFrame(arrays)
        data, target = frame[names], frame[label]
    else:
        data = np.stack([arrays[name].astype(object) for name in names], axis=1)
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        frame=frame,
        feature_names=names,
        target_names=classes or [label],
        DESCR=inspect.cleandoc(source.__doc__ or ""),
    )
